#!/usr/bin/env bash
# Brings the scheduler up on this machine: one command from a bare system to a healthy stack.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/releases.sh
source "$ROOT/scripts/lib/releases.sh"
# shellcheck source=scripts/lib/connections.sh
source "$ROOT/scripts/lib/connections.sh"

readonly FREE_DISK_MB=2048 # images, their build cache, and room for the first weeks of runs
readonly HEALTHY_WITHIN_S=180
readonly STOP_BESIDE_DRAIN_S=50 # nginx 15, web 20, and 15 for the scheduler to write down what did not finish
# What is written into .env when it is given: where the stack is reached, and what it is made of.
readonly KEPT=(COMPOSE_FILE COMPOSE_PROJECT_NAME HTTP_PORT HTTPS_PORT TLS_DIR PROMETHEUS_ADDRESS POSTGRES_IMAGE VALKEY_IMAGE
  WHALEFALL_TAG BASE_IMAGE BUILD_SETTINGS_DIR)

may_install=false
wanted_shape=

usage() {
  cat <<'EOT'
Usage: scripts/up.sh [--shape prod|split|ha] [--install-engine]

Checks this machine, makes the secrets and the images that are missing, starts the stack and waits until it is really
healthy. Safe to run again: what exists stays, what did not change is not restarted.

  --shape SHAPE      prod: one container with everything, on SQLite (what is started when nothing is said)
                     split: nginx, web and scheduler in containers of their own, on SQLite
                     ha: several of each, and workers, on PostgreSQL with Valkey
                     kept in .env, so that plain `docker compose` commands address the same stack
  --install-engine   install what is missing (Docker Engine, Compose, buildx, mmdebstrap) from the distribution's own
                     packages, as root; without it nothing is ever installed
  --help             this text

Settings come from the environment or from .env (every variable: env.example). Those given here are kept in .env:
  HTTP_PORT             the port to publish; 80 when not given
  TLS_DIR               a folder with tls.crt and tls.key: https is on, and http leads to it
  HTTPS_PORT            its port; 443 when not given
  COMPOSE_PROJECT_NAME  another name, for a second stack beside the first
  COMPOSE_FILE          the compose files, with overlays
  PROMETHEUS_ADDRESS    where the Prometheus of docker-compose.observability.yml listens; 127.0.0.1:9090 when not given
  POSTGRES_IMAGE, VALKEY_IMAGE  images for the shape ha; built from Debian packages when not given
Any other takes effect now, and lasts when it stands in .env.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --install-engine) may_install=true ;;
      --shape)
        [[ ${2-} =~ ^(prod|split|ha)$ ]] || usage_error "--shape is '${2-}'; accepted: prod, split, ha"
        wanted_shape=$2
        shift
        ;;
      --help)
        usage
        exit 0
        ;;
      *) usage_error "unknown argument '$1'; accepted: --shape, --install-engine, --help" ;;
    esac
    shift
  done
}

# --- the machine -----------------------------------------------------------------------------------------------------

# check_port VARIABLE PORT
check_port() {
  local port=$2 owner
  if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port < 1 || 10#$port > 65535)); then
    die "$1 is '$port'; accepted: a port number from 1 to 65535"
  fi
  owner=$(compose ps --format '{{.Publishers}}' 2> /dev/null) || owner=""
  [[ $owner != *" $port "* ]] || return 0 # this very stack has it
  port_is_free "$port" || die "port $port is taken by another program; free it, or choose one: $1=$((10#$port % 1000 + 8000)) scripts/up.sh"
}

# What stops in order must not be killed while it still waits for runs. What is no such number is refused elsewhere.
check_grace() {
  local drain grace
  drain=$(setting DRAIN_SECONDS 30)
  grace=$(setting STOP_GRACE_PERIOD 90s)
  [[ $drain =~ ^([0-9]{1,4})(\.[0-9]+)?$ ]] || return 0
  drain=${BASH_REMATCH[1]}
  [[ $grace =~ ^(([0-9]{1,3})h)?(([0-9]{1,5})m)?(([0-9]{1,6})s)?$ ]] || return 0
  ((10#${BASH_REMATCH[2]:-0} * 3600 + 10#${BASH_REMATCH[4]:-0} * 60 + 10#${BASH_REMATCH[6]:-0} >= 10#$drain + STOP_BESIDE_DRAIN_S)) ||
    die "STOP_GRACE_PERIOD is '$grace', and DRAIN_SECONDS is $drain: Docker would kill what still waits for runs; accepted: at least $((10#$drain + STOP_BESIDE_DRAIN_S))s"
}

# The stack at work, and a build: measured, and half as much again.
needed_memory_mb() {
  case $(shape) in
    prod) echo 400 ;;
    split) echo 500 ;;
    ha) echo 1500 ;;
  esac
}

check_room() {
  local folder free memory needed
  folder=$(docker info --format '{{.DockerRootDir}}')
  # An engine elsewhere keeps its images elsewhere.
  if [[ -d $folder ]]; then
    free=$(df --output=avail -BM "$folder" | tail -n 1 | tr -dc '0-9')
    ((free >= FREE_DISK_MB)) ||
      die "$folder has $free MB free; needed: $FREE_DISK_MB MB (docker system prune frees what nothing uses)"
  fi
  memory=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
  needed=$(needed_memory_mb)
  ((memory >= needed)) || die "$memory MB of memory are available; needed: $needed MB"
}

# --- one shape at a time ---------------------------------------------------------------------------------------------

# The shape of which containers are here, running or stopped; nothing where there are none.
present_shape() {
  local services
  services=$(docker ps --all --filter "label=com.docker.compose.project=$(project_name)" \
    --filter label=com.docker.compose.oneoff=False --format '{{.Label "com.docker.compose.service"}}')
  case $'\n'$services$'\n' in
    *$'\nwhalefall\n'*) echo prod ;;
    *$'\npostgres\n'* | *$'\nvalkey\n'*) echo ha ;;
    *$'\nscheduler\n'*) echo split ;;
  esac
}

# Two shapes in one project would be two schedulers on two stores, or two programs on one port.
refuse_another_shape() {
  local present wanted
  wanted=$(shape)
  present=$(present_shape)
  if [[ -n $present && $present != "$wanted" ]]; then
    die "the shape $present is here; take it down first (its data stays): docker compose --project-name $(project_name) down"
  fi
  if [[ $wanted != ha ]] && have_volume postgres; then
    die "the jobs of this project are in PostgreSQL (volume $(project_name)_postgres), and the shape $wanted would start without them; start the shape ha, or another project beside it: COMPOSE_PROJECT_NAME=... scripts/up.sh --shape $wanted"
  fi
}

# Jobs and history on SQLite that the shape ha would not see. Asked when the images are here: only a container can look
# into a volume.
refuse_to_leave_data_behind() {
  [[ $(shape) == ha ]] && have_volume userdata || return 0
  # shellcheck disable=SC2016 # for the container's shell
  docker run --rm --network none --entrypoint sh --volume "$(project_name)_userdata:/data:ro" \
    "whalefall/app:$(setting WHALEFALL_TAG latest)" -c '[ ! -e /data/scheduler.db ] || [ -e /data/moved_to_postgres.json ]' ||
    die "the jobs of this project are in SQLite (volume $(project_name)_userdata); scripts/move_to_postgres.sh brings them into the shape ha"
}

# --- https -----------------------------------------------------------------------------------------------------------

# With TLS_DIR the overlay for https follows the shape's compose file; that of another shape does not stay.
use_certificate() {
  local folder files overlay=compose/docker-compose.https.yml
  folder=$(setting TLS_DIR)
  [[ -n $folder ]] || return 0
  [[ $folder =~ ^/[A-Za-z0-9/._@+-]*$ ]] ||
    die "TLS_DIR is '$folder'; accepted: an absolute path of letters, digits and / . _ @ + -"
  [[ -e $folder/tls.crt && -e $folder/tls.key ]] ||
    die "TLS_DIR $folder has no tls.crt and tls.key; scripts/make_dev_cert.sh makes them for trying https out"
  [[ $(shape) == prod ]] || overlay=compose/docker-compose.https-nginx.yml
  files=$(setting COMPOSE_FILE compose/docker-compose.prod.yml)
  if [[ $files == *docker-compose.https* ]]; then
    export COMPOSE_FILE
    COMPOSE_FILE=$(sed -E "s|docker-compose\.https(-nginx)?\.yml|${overlay#compose/}|" <<< "$files")
  else
    export COMPOSE_FILE=$files:$overlay
  fi
}

# --- what the stack is made of ---------------------------------------------------------------------------------------

# Since an upgrade the tag of the images names what they were made of: a tree that was changed makes others, and those of
# the release stay what they are.
name_images_by_tree() {
  if [[ $(setting WHALEFALL_TAG latest) =~ $ID_PATTERN && $(setting COMPOSE_FILE) != .releases/* ]]; then
    WHALEFALL_TAG=$(tree_id)
    export WHALEFALL_TAG
    keep_setting WHALEFALL_TAG "$WHALEFALL_TAG"
  fi
}

keep_settings() {
  local name
  for name in "${KEPT[@]}"; do
    [[ -z ${!name-} ]] || keep_setting "$name" "${!name}"
  done
}

# Of the settings that are passed on to the containers some are secret: they are not written anywhere unasked.
tell_what_is_not_kept() {
  local name
  local -a given=()
  while read -r name; do
    [[ -z ${!name-} || " ${KEPT[*]} " == *" $name "* ]] && continue
    [[ ${!name} == "$(unset "$name" && setting "$name")" ]] || given+=("$name")
  done < <(grep --no-filename --only-matching --extended-regexp '\$\{[A-Z][A-Z0-9_]*|^ +[A-Z][A-Z0-9_]*:$' compose/*.yml |
    grep --only-matching --extended-regexp '[A-Z][A-Z0-9_]*' | sort --unique)
  ((${#given[@]} == 0)) ||
    warn "given to this command alone, so that \`docker compose up\` will start without: ${given[*]}; .env makes it last"
}

# --- start -----------------------------------------------------------------------------------------------------------

start_stack() {
  local -a recreate=()
  # A container that runs already still holds the secret that was there before.
  ((${#made[@]} == 0)) || recreate=(--force-recreate)
  step "starting the stack"
  compose up --detach --no-build "${recreate[@]}" >&2 < /dev/null || die "the stack could not be started; the reason is above"
}

# PostgreSQL keeps the password of its first start; a new one is told to it through its own socket.
renew_postgres_password() {
  [[ " ${made[*]-} " == *" postgres_password "* ]] && have_volume postgres || return 0
  step "telling PostgreSQL its new password"
  compose up --detach --no-build --force-recreate --wait postgres >&2 < /dev/null || die "PostgreSQL does not start; the reason is above"
  # shellcheck disable=SC2016 # for psql
  compose exec -T postgres psql --quiet --username=whalefall --dbname=whalefall --set=ON_ERROR_STOP=1 >&2 \
    <<< '\set secret `cat /run/secrets/postgres_password`
ALTER ROLE whalefall PASSWORD :'"'secret'"';' || die "PostgreSQL did not take its new password; the reason is above"
}

wait_until_healthy() {
  local container state deadline=$((SECONDS + HEALTHY_WITHIN_S))
  local -a waiting
  local -A restarts=()
  # Not those of `compose run`, of which one may have been left behind.
  mapfile -t waiting < <(docker ps --all --quiet --filter "label=com.docker.compose.project=$(project_name)" \
    --filter label=com.docker.compose.oneoff=False)
  for container in "${waiting[@]}"; do
    restarts[$container]=$(docker inspect --format '{{.RestartCount}}' "$container")
  done
  step "waiting until it is healthy"
  while ((${#waiting[@]})); do
    container=${waiting[0]}
    state=$(docker inspect --format '{{.State.Health.Status}} {{.RestartCount}}' "$container")
    if [[ $state == "healthy ${restarts[$container]}" ]]; then
      waiting=("${waiting[@]:1}")
      continue
    fi
    if ((SECONDS >= deadline)) || ((${state#* } > ${restarts[$container]} + 1)); then
      docker logs --tail 30 "$container" >&2
      docker inspect --format '{{range .State.Health.Log}}{{.Output}}{{end}}' "$container" | tail -n 3 >&2
      die "$(docker inspect --format '{{slice .Name 1}}' "$container") is not healthy (${state% *}, restarted $((${state#* } - ${restarts[$container]})) times); its last words are above"
    fi
    sleep 0.25
  done
}

# Where people find it: over https where there is a certificate.
address() {
  local name scheme=http port usual=80
  name=$(hostname -f 2> /dev/null) || name=localhost
  port=$(setting HTTP_PORT 80)
  if [[ -n $(setting TLS_DIR) ]]; then
    scheme=https usual=443
    port=$(setting HTTPS_PORT 443)
  fi
  [[ $port != "$usual" ]] || port=
  printf '%s://%s%s/\n' "$scheme" "$name" "${port:+:$port}"
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  local port
  port=$(setting HTTP_PORT 80)
  [[ -z $wanted_shape ]] || use_shape "$wanted_shape"
  use_certificate

  ensure_engine "$may_install"
  release_left_connections
  refuse_another_shape
  check_port HTTP_PORT "$port"
  [[ -z $(setting TLS_DIR) ]] || check_port HTTPS_PORT "$(setting HTTPS_PORT 443)"
  check_grace
  check_room
  name_images_by_tree
  prepare_build "$may_install"
  build_images
  refuse_to_leave_data_behind
  ensure_secrets
  keep_settings
  renew_postgres_password
  start_stack
  wait_until_healthy
  step "healthy"
  tell_what_is_not_kept

  printf 'Address:  %s\nAdmin:    admin\nPassword: in the file %s\n' "$(address)" "$SECRETS_DIR/admin_password"
}

main "$@"
