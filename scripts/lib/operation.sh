# What every script that changes something does alike: its common options, one at a time, and asking first.
# shellcheck shell=bash

confirmed=false # --yes
dry_run=false   # --dry-run
as_json=false   # --json

# Takes one of the options that every such script has; fails on any other. `usage` is the script's own.
parse_common_option() {
  case $1 in
    --yes) confirmed=true ;;
    --dry-run) dry_run=true ;;
    --json) as_json=true ;;
    --help)
      usage
      exit 0
      ;;
    *) return 1 ;;
  esac
}

# json_escaped TEXT: as it may stand between the quotes of JSON.
json_escaped() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/ }
  printf '%s' "$text" | LC_ALL=C tr -d '\000-\037\177'
}

# json_text TEXT: as a string of JSON; null when it is empty.
json_text() {
  if [[ -n $1 ]]; then printf '"%s"' "$(json_escaped "$1")"; else printf 'null'; fi
}

# tell_plan [NAME VALUE]...: what --dry-run comes to. With --json an object of these, otherwise the words on standard input.
tell_plan() {
  if ! $as_json; then
    cat
    return
  fi
  local object='{"dry_run": true'
  while (($#)); do
    object+=", \"$1\": $(json_text "$2")"
    shift 2
  done
  printf '%s}\n' "$object"
}

# confirm QUESTION: unless --yes was said; dies where nobody can be asked.
confirm() {
  $confirmed && return
  [[ -t 0 ]] || die "this changes the stack: say --yes (or --dry-run to see what would be done)"
  local answer
  read -r -p "$1 [y/N] " answer
  [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || die "nothing was changed"
}

# Two operations at once would take each other's stack apart. The lock ends with this process, whatever ends it; scripts
# that it calls work under it.
take_lock() {
  [[ ${WHALEFALL_LOCK_OF-} != "$(project_name)" ]] || return 0
  mkdir -p "$BUILD_DIR"
  exec {lock}>> "$BUILD_DIR/$(project_name).lock"
  # What a killed script had started may still be at work.
  flock --timeout 30 "$lock" || die "another operation is changing the stack $(project_name); wait for it"
  WHALEFALL_LOCK_OF=$(project_name)
  export WHALEFALL_LOCK_OF
}

# wait_until_containers_healthy SECONDS CONTAINER...: fails after the deadline, or when one has ended or was restarted twice
# meanwhile, with its last words on stderr; unhealthy_container then is its name and its state.
wait_until_containers_healthy() {
  local container health status restarts deadline=$((SECONDS + $1))
  local -A before=()
  shift
  for container; do
    before[$container]=$(docker inspect --format '{{.RestartCount}}' "$container")
  done
  for container; do
    while
      read -r status restarts health < <(docker inspect --format \
        '{{.State.Status}} {{.RestartCount}} {{if .State.Health}}{{.State.Health.Status}}{{else}}healthy{{end}}' "$container")
      [[ $status != running || $health != healthy ]]
    do
      if ((SECONDS >= deadline || restarts > before[$container] + 1)) || [[ $status == exited || $status == dead ]]; then
        docker logs --tail 30 "$container" >&2
        unhealthy_container="$(docker inspect --format '{{slice .Name 1}}' "$container") ($health, $status)"
        return 1
      fi
      sleep 0.25
    done
  done
}
