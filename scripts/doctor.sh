#!/usr/bin/env bash
# Finds in one look what is wrong with the stack, also when it is down or damaged, and says what to do. Changes nothing.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/host_findings.sh
source "$ROOT/scripts/lib/host_findings.sh"

readonly FOUND=3 # exit status, also that of app/cli/doctor.py
readonly LOOK_WITHIN_S=120
readonly LOG_LINES=5000 # of each container, in a bundle

bundle=
inside= # what the app found: text, or a list in JSON

usage() {
  cat <<'EOT'
Usage: scripts/doctor.sh [--json] [--bundle FILE]

Looks at the engine, the containers, ports, disks, secrets, stores, schedulers, jobs and the way through nginx, and prints
what is wrong: what it means, the next command to type, and the runbook that says more. It works also when the stack is
down or damaged, and changes nothing.

  --json          one line of JSON: {"project", "shape", "findings": [{"id", "severity", "what", "means", "command",
                  "runbook"}]}
  --bundle FILE   also write a support archive (tar.gz): configuration, logs, status, versions and these findings,
                  without secrets
  --dry-run       write no archive
  --yes           taken as every script takes it; nothing is asked
  --help          this text

Severities: error (jobs do not fire, or the service is out of reach), warning (something was lost, or will be), note (a
reason why a job did not fire, perhaps on purpose).
Exit status: 0 nothing but notes; 1 the doctor itself failed; 2 wrong arguments; 3 errors or warnings were found.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if [[ $1 == --bundle ]]; then
      [[ $# -gt 1 && -n $2 && $2 != --* ]] || usage_error "--bundle needs a value: the file to write"
      bundle=$(absolute_path "$2")
      shift
    elif ! parse_common_option "$1"; then
      usage_error "unknown argument '$1'; accepted: --json, --bundle FILE, --dry-run, --yes, --help"
    fi
    shift
  done
}

# It counts from where the person is, not from the project's root.
absolute_path() {
  local folder
  folder=$(cd "$(dirname "$1")" 2> /dev/null && pwd) && [[ -w $folder && ! -d $1 ]] ||
    usage_error "--bundle is '$1'; accepted: a file in a folder that can be written"
  printf '%s/%s\n' "$folder" "$(basename "$1")"
}

# What the app sees, from the stack's own container; from one beside it where that cannot be asked.
look_inside() {
  local status=0
  local -a options=(--project "$(project_name)" --service "$SERVICE" --shape "$(shape)")
  local container node url=http://127.0.0.1:8080
  [[ $(shape) == prod ]] || url=http://nginx:8080
  $as_json && options+=(--json)
  for container in $(app_containers); do
    node=$(node_of "$container")
    options+=(--node "$node")
  done
  if is_up "$SERVICE"; then
    is_up "$([[ $(shape) == prod ]] && echo whalefall || echo nginx)" && options+=(--url "$url")
    inside=$(timeout "$LOOK_WITHIN_S" docker compose exec -T "$SERVICE" python3 -m app.cli.doctor "${options[@]}" \
      < /dev/null 2> "$scratch/inside.log") || status=$?
  else
    status=1
  fi
  if ((status != 0 && status != FOUND)); then
    status=0
    # Compose would begin to build or pull one that is missing.
    if have_image "$(app_image)"; then
      inside=$(timeout "$LOOK_WITHIN_S" docker compose run --rm -T --no-deps "$SERVICE" python3 -m app.cli.doctor \
        "${options[@]}" --stopped < /dev/null 2> "$scratch/inside.log") || status=$?
    else
      echo "the image $(app_image) is not here" > "$scratch/inside.log"
      status=1
    fi
  fi
  if ((status == FOUND)); then
    found_worst=error
  elif ((status != 0)); then
    inside=
    finding error app-unreachable "no container of the app can be started: $(tail -n 1 "$scratch/inside.log")" \
      "What is in the stores could not be looked at." "scripts/up.sh" README.md
  fi
}

# The image of the service that the app's commands run in.
app_image() {
  if [[ $(shape) == prod ]]; then
    echo "whalefall/allinone:$(setting WHALEFALL_TAG latest)"
  else
    echo "whalefall/app:$(setting WHALEFALL_TAG latest)"
  fi
}

app_containers() {
  local service
  for service in whalefall web scheduler worker; do
    docker ps --all --quiet --filter "label=com.docker.compose.project=$(project_name)" \
      --filter "label=com.docker.compose.service=$service" --filter label=com.docker.compose.oneoff=False
  done
}

is_up() {
  local container
  for container in $(containers_of "$1"); do
    [[ $(docker inspect --format '{{.State.Status}}' "$container") != running ]] || return 0
  done
  return 1
}

look() {
  look_at_engine || return 0
  look_at_port
  look_at_disk
  if ! look_at_settings; then
    look_at_containers
    return 0
  fi
  look_at_containers
  look_at_secrets
  look_at_neighbours
  look_inside
}

report() {
  if $as_json; then
    local list
    list=$(printf '%s\n' "${found_json[@]}" | paste -s -d ',')
    # Two lists become one; the app's is a line that begins with a bracket.
    if [[ -n $list && ${#inside} -gt 2 ]]; then
      list+=,
    fi
    list+=${inside#\[}
    list=${list%\]}
    printf '{"project": "%s", "shape": "%s", "findings": [%s]}\n' "$(project_name)" "$(shape)" "$list"
    return
  fi
  local one
  for one in "${found_text[@]}"; do
    printf '%s\n' "$one"
  done
  [[ -z $inside ]] || printf '%s\n' "$inside"
  if ((${#found_text[@]} == 0)) && [[ -z $inside ]]; then
    echo "nothing is wrong"
  fi
}

# --- the support archive ---------------------------------------------------------------------------------------------

# Everything raw lies in the scratch folder, which only this user can read and which goes at the end.
gather() {
  local container name
  local -a containers
  umask 077
  mkdir -p "$scratch/raw/secrets" "$scratch/raw/logs"
  report > "$scratch/raw/doctor.$($as_json && echo json || echo txt)"
  {
    uname --all
    cat /etc/os-release
    docker version
    docker compose version
    docker image ls --filter 'reference=whalefall/*'
  } > "$scratch/raw/versions.txt" 2>&1 || true # what is missing is told in it
  {
    date --utc
    uptime
    free --mebi
    df --human-readable
    docker system df
  } > "$scratch/raw/host.txt" 2>&1 || true # as above
  compose config > "$scratch/raw/compose.yml" 2>&1 || true # as above
  [[ ! -f $ENV_FILE ]] || cp "$ENV_FILE" "$scratch/raw/env.txt"
  docker ps --all --filter "label=com.docker.compose.project=$(project_name)" > "$scratch/raw/containers.txt"
  mapfile -t containers < <(docker ps --all --quiet --filter "label=com.docker.compose.project=$(project_name)")
  docker inspect "${containers[@]}" > "$scratch/raw/inspect.json" 2> /dev/null || true # there may be none
  for container in "${containers[@]}"; do
    name=$(name_of "$container")
    docker logs --timestamps --tail "$LOG_LINES" "$container" > "$scratch/raw/logs/$name.log" 2>&1 || true # a driver without logs
  done
  gather_secrets
}

# What is to be masked wherever it stands; none of it is passed on.
gather_secrets() {
  local source number=0
  for source in $(mounted_secrets) "$SECRETS_DIR"/*; do
    [[ -f $source && -r $source ]] || continue
    number=$((number + 1))
    cp "$source" "$scratch/raw/secrets/$number"
  done
}

mounted_secrets() {
  local container
  for container in $(docker ps --all --quiet --filter "label=com.docker.compose.project=$(project_name)"); do
    docker inspect --format '{{range .Mounts}}{{.Source}}|{{.Destination}}{{println}}{{end}}' "$container"
  done | sed -n 's,^\(.*\)|/run/secrets/.*,\1,p' | sort -u
}

# The app masks it, in the container that is at hand; of the last one only the image is needed.
write_bundle() {
  local -a mask=(python3 -m app.cli.support_bundle)
  (cd "$scratch/raw" && tar --create --file "$scratch/raw.tar" .)
  if is_up "$SERVICE" && timeout "$LOOK_WITHIN_S" docker compose exec -T "$SERVICE" "${mask[@]}" \
    < "$scratch/raw.tar" > "$scratch/bundle" 2> "$scratch/mask.log"; then
    return
  fi
  have_image "$(app_image)" || die "no archive was written: the image $(app_image), which masks the secrets in it, is not here"
  if timeout "$LOOK_WITHIN_S" docker compose run --rm -T --no-deps "$SERVICE" "${mask[@]}" \
    < "$scratch/raw.tar" > "$scratch/bundle" 2> "$scratch/mask.log"; then
    return
  fi
  if docker run --rm --interactive --network none --entrypoint "" "$(app_image)" "${mask[@]}" \
    < "$scratch/raw.tar" > "$scratch/bundle" 2> "$scratch/mask.log"; then
    return
  fi
  die "no archive was written: nothing here can mask the secrets in it ($(tail -n 1 "$scratch/mask.log"))"
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  scratch=$(mktemp --directory)
  trap 'rm -rf "$scratch"' EXIT
  step "looking"
  look
  report
  if [[ -n $bundle ]] && ! $dry_run; then
    step "writing $bundle"
    engine_answers || die "no archive was written: the Docker engine does not answer"
    gather
    write_bundle
    (umask 077 && cp "$scratch/bundle" "$bundle.new" && mv "$bundle.new" "$bundle")
  fi
  [[ $found_worst == note ]] || exit "$FOUND"
}

main "$@"
