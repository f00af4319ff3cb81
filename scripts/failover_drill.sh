#!/usr/bin/env bash
# Kills the busiest scheduler of a running stack and times how long it takes until every job fires again.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/drill.sh
source "$ROOT/scripts/lib/drill.sh"

readonly BEFORE_S=12 # of undisturbed probes; the first come after 5 s
readonly AFTER_S=6   # of probes on the whole stack again
readonly WINDOW_S=10 # in which the busiest one is looked for

jobs=20
faults_file=

usage() {
  cat <<'EOT'
Usage: scripts/failover_drill.sh [--yes] [--dry-run] [--json] [--jobs N]

Starts probe jobs that fire every second, kills every process of the scheduler container that is the busiest at that
moment (SIGKILL, as a power cut would), lets Docker start it again, and prints how late fires were, how long it took until
every job fired again, and whether every fire started at most once and none vanished. Takes about a minute. What else that
scheduler was running is lost, and on record as such; alerts of it are real. In the shapes prod and split there is one
scheduler: the time is that of its restart. scripts/prove_once.sh does more, and for longer.

  --jobs N    how many probes, 1 to 200; 20 when not given
  --yes       do not ask
  --dry-run   say which container would be killed; change nothing
  --json      one line of JSON: the verdict, with the figures of the kill under "faults"
  --help      this text

Exit status: 0 every fire is accounted for; 1 the drill could not be done; 2 wrong arguments; 4 a fire was doubled or is
missing; 130 or 143 interrupted.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if [[ $1 == --jobs ]]; then
      if [[ ! ${2-} =~ ^[0-9]{1,3}$ ]] || ((10#$2 < 1 || 10#$2 > 200)); then
        usage_error "--jobs is '${2-}'; accepted: a whole number from 1 to 200"
      fi
      jobs=$((10#$2))
      shift
    elif ! parse_common_option "$1"; then
      usage_error "unknown argument '$1'; accepted: --jobs N, --yes, --dry-run, --json, --help"
    fi
    shift
  done
}

# Sets target, node and how busy it is: the first of the list that is a container of this stack.
find_busiest() {
  local name running started container
  while read -r name running started; do
    for container in $(containers_of "$SERVICE"); do
      if [[ $(node_of "$container") == "$name" ]]; then
        target=$container node=$name
        busy="$running running, $started started in the last $WINDOW_S s"
        return
      fi
    done
  done < <(in_app flask jobs busy-nodes --window "$WINDOW_S" < /dev/null | tail -n +2)
  die "none of this stack's containers runs a living scheduler; docker compose ps tells more"
}

started_at() {
  docker inspect --format '{{.State.StartedAt}}' "$1"
}

# Docker starts a container again whose processes ended; after `docker kill` it would not.
kill_target() {
  local before deadline=$((SECONDS + HEALTHY_WITHIN_S)) begin
  before=$(started_at "$target")
  step "killing $(title_of "$target") ($node): $busy"
  begin=$(now)
  undisturbed docker exec "$target" sh -c 'kill -s KILL -- -1' > /dev/null 2>&1 || true # it ends with all the others
  until [[ $(started_at "$target") != "$before" ]]; do
    ((SECONDS < deadline)) || die "$(title_of "$target") was not started again by Docker; docker logs $(name_of "$target") tells why"
    pause_for 0.1
  done
  wait_until_healthy "$target"
  printf '{"kind": "kill", "target": "%s", "node": "%s", "begin": %s, "end": %s}\n' \
    "$(title_of "$target")" "$node" "$begin" "$(now)" > "$faults_file"
}

# Whatever happens, the probes are gone.
# shellcheck disable=SC2329 # the trap calls it
clean_up() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  if [[ -n $drill ]]; then
    step "cleaning up"
    stop_probes ||
      warn "the probes still run, and stop by themselves $SLACK_MINUTES minutes after they began; flask jobs drill-stop $drill, in a container of the app, stops them now"
  fi
  rm -f "$faults_file"
  exit "$status"
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_running_stack
  take_lock
  require_healthy "$SERVICE"
  local target='' node='' busy='' name status=0
  local -a form=()
  if $dry_run; then
    find_busiest
    tell_plan target "$(title_of "$target")" node "$node" busy "$busy" <<< "would kill $(title_of "$target") ($node): $busy"
    return
  fi
  confirm "Kill the busiest of $(containers_of "$SERVICE" | wc -l) scheduler containers of the stack $(project_name)?"
  faults_file=$(mktemp)
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  step "starting $jobs probes"
  drill=$(in_app flask jobs drill-start --jobs "$jobs" --minutes "$SLACK_MINUTES" < /dev/null) || exit 1 # the reason is above
  name=$drill
  pause_for "$BEFORE_S"
  find_busiest
  kill_target
  pause_for "$AFTER_S"
  stop_probes || die "the probes could not be stopped; the reason is above"
  step "comparing"
  ! $as_json || form=(--json)
  in_app flask jobs drill-verdict "$name" --faults - "${form[@]}" < "$faults_file" || status=$?
  [[ $status == 0 || $status == 4 ]] || status=1
  exit "$status"
}

main "$@"
