#!/usr/bin/env bash
# A drill for a staging stack: harms its schedulers while probe jobs fire, and says whether every fire started at most
# once and none vanished.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/drill.sh
source "$ROOT/scripts/lib/drill.sh"

readonly KINDS=(kill freeze cut database)
readonly MOST_FIRES=100000 # of which a report is still read with pleasure

minutes=5
jobs=20
executor=default
seed=$RANDOM
report=
kinds=()
faults_file=

usage() {
  cat <<'EOT'
Usage: scripts/prove_once.sh --yes [--minutes N] [--jobs N] [--executor NAME] [--faults LIST] [--seed N]
                             [--report FOLDER] [--dry-run] [--json]

For a staging stack, never for one that people rely on: runs probe jobs that fire every second, and about twice a minute
kills, freezes or cuts off a scheduler, chosen at random, or restarts the database. Then it compares what was due, what
the probes wrote down and what the ledger says, and prints a verdict. A report (report.html with a picture of every
fire, report.json) lies in userdata/drills/ of the stack, where the newest ten drills are kept; docs/drill.md explains
it.

  --yes              needed: this harms the running stack, and its alerts are real
  --minutes N        how long, 1 to 60; 5 when not given
  --jobs N           how many probes, 1 to 200; 20 when not given
  --executor NAME    default, process or celery; default when not given. With celery, workers are harmed as well
  --faults LIST      of kill, freeze, cut, database, separated by commas; all that the stack allows when not given:
                     cut and database are for the shape ha
  --seed N           repeats the choices of an earlier drill, 0 to 32767
  --report FOLDER    copies report.html and report.json to this folder of the host
  --dry-run          say what would be done, and do nothing; needs no --yes
  --json             the verdict as JSON
  --help             this text

Interrupted, it mends what it harmed and deletes the probes.

Exit status: 0 proven; 1 the drill could not be done; 2 wrong arguments; 4 not proven; 130 or 143 interrupted.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --yes | --dry-run | --json | --help) parse_common_option "$1" ;;
      --minutes | --jobs | --executor | --faults | --seed | --report)
        [[ $# -gt 1 && -n $2 ]] || usage_error "$1 needs a value (--help tells more)"
        take_value "$1" "$2"
        shift
        ;;
      *) usage_error "unknown argument '$1' (--help tells more)" ;;
    esac
    shift
  done
}

take_value() {
  local kind
  case $1 in
    --minutes)
      is_whole "$2" 1 60 || usage_error "--minutes is '$2'; accepted: a whole number from 1 to 60"
      minutes=$((10#$2))
      ;;
    --jobs)
      is_whole "$2" 1 200 || usage_error "--jobs is '$2'; accepted: a whole number from 1 to 200"
      jobs=$((10#$2))
      ;;
    --seed)
      is_whole "$2" 0 32767 || usage_error "--seed is '$2'; accepted: a whole number from 0 to 32767"
      seed=$((10#$2))
      ;;
    --executor)
      [[ $2 =~ ^(default|process|celery)$ ]] || usage_error "--executor is '$2'; accepted: default, process, celery"
      executor=$2
      ;;
    --faults)
      IFS=, read -ra kinds <<< "$2"
      for kind in "${kinds[@]}"; do
        [[ " ${KINDS[*]} " == *" $kind "* ]] || usage_error "--faults holds '$kind'; accepted: ${KINDS[*]}"
      done
      ;;
    --report)
      [[ -d $2 && -w $2 ]] || usage_error "--report is '$2'; accepted: a folder that exists and can be written"
      report=$(cd "$2" && pwd)
      ;;
  esac
}

is_whole() {
  [[ $1 =~ ^[0-9]{1,5}$ ]] && ((10#$1 >= $2 && 10#$1 <= $3))
}

# What can be said of the arguments together, and of this stack's shape.
check_arguments() {
  $confirmed || $dry_run || usage_error "this harms the running stack: --yes says that nobody relies on it"
  ((jobs * minutes * 60 <= MOST_FIRES)) ||
    usage_error "$jobs jobs for $minutes minutes are $((jobs * minutes * 60)) fires; accepted: at most $MOST_FIRES"
  choose_kinds
}

# What this stack can suffer: one container cannot be cut off from its own SQLite file, and has no database to restart.
allowed_kinds() {
  local kind
  for kind in "${KINDS[@]}"; do
    [[ $(shape) == ha || $kind != cut && $kind != database ]] && echo "$kind"
  done
}

choose_kinds() {
  local kind
  local -a allowed
  mapfile -t allowed < <(allowed_kinds)
  ((${#kinds[@]})) || kinds=("${allowed[@]}")
  for kind in "${kinds[@]}"; do
    [[ " ${allowed[*]} " == *" $kind "* ]] ||
      usage_error "--faults holds '$kind', which a stack of the shape $(shape) does not allow; it allows: ${allowed[*]}"
  done
}

# --- faults ----------------------------------------------------------------------------------------------------------

# The container that is being harmed, and the names that it has on the network of the stores.
harmed=
aliases=()

harm() {
  local kind=$1 target=$2 begin node=''
  [[ $kind == database ]] || node=$(node_of "$target")
  step "$kind $(title_of "$target")"
  mapfile -t aliases < <(aliases_of "$target" | sed '/^$/d; s/^/--alias=/')
  harmed=$target
  begin=$(now)
  case $kind in
    kill)
      undisturbed docker kill "$target" > /dev/null
      pause_for 5
      ;;
    freeze)
      undisturbed docker pause "$target" > /dev/null
      pause_for 10
      ;;
    cut)
      undisturbed docker network disconnect "$(stores)" "$target"
      pause_for 10
      ;;
    database) undisturbed docker restart "$target" > /dev/null ;;
  esac
  put_right
  printf '{"kind": "%s", "target": "%s", "node": "%s", "begin": %s, "end": %s}\n' \
    "$kind" "$(title_of "$target")" "$node" "$begin" "$(now)" >> "$faults_file"
  wait_until_healthy "$target"
}

aliases_of() {
  docker inspect --format "{{with index .NetworkSettings.Networks \"$(stores)\"}}{{range .Aliases}}{{println .}}{{end}}{{end}}" "$1"
}

stores() {
  echo "$(project_name)_stores"
}

# Looks at what is wrong rather than at what was done: an interruption may have come before or after.
put_right() {
  [[ -n $harmed ]] || return 0
  case $(docker inspect --format '{{.State.Status}}' "$harmed") in
    paused) undisturbed docker unpause "$harmed" > /dev/null || return 1 ;;
    running | restarting) ;;
    *) undisturbed docker start "$harmed" > /dev/null || return 1 ;;
  esac
  if ((${#aliases[@]})) && ! in_stores "$harmed"; then
    undisturbed docker network connect "${aliases[@]}" "$(stores)" "$harmed" || return 1
  fi
  harmed=
}

in_stores() {
  [[ $(docker inspect --format '{{json .NetworkSettings.Networks}}' "$1") == *"\"$(stores)\":"* ]]
}

one_fault() {
  local kind=${kinds[RANDOM % ${#kinds[@]}]}
  local -a targets
  if [[ $kind == database ]]; then
    mapfile -t targets < <(containers_of postgres)
  else
    mapfile -t targets < <(containers_of "$SERVICE")
    # shellcheck disable=SC2207 # ids hold no blanks
    [[ $executor != celery ]] || targets+=($(containers_of worker))
  fi
  ((${#targets[@]})) || die "there is no container to $kind"
  harm "$kind" "${targets[RANDOM % ${#targets[@]}]}"
}

# --- the drill -------------------------------------------------------------------------------------------------------

# Whatever happens, the stack is whole and the probes are gone.
# shellcheck disable=SC2329 # the trap calls it
clean_up() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  if [[ -n $harmed || -n $drill ]]; then
    step "cleaning up"
  fi
  [[ -z $harmed ]] || put_right || warn "$(name_of "$harmed") could not be mended"
  [[ -z $drill ]] || stop_probes ||
    warn "the probes still run, and stop by themselves $((minutes + SLACK_MINUTES)) minutes after they began; flask jobs drill-stop $drill, in a container of the app, stops them now"
  rm -f "$faults_file"
  exit "$status"
}

copy_report() {
  local file
  for file in report.html report.json; do
    docker exec "$1" cat "userdata/drills/$2/$file" > "$report/$file" ||
      die "$file could not be copied to $report; it is in userdata/drills/$2 of the stack"
  done
  step "the report is $report/report.html"
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  check_arguments
  require_running_stack
  require_healthy "$SERVICE"
  [[ $(shape) != ha ]] || require_healthy postgres
  [[ $executor != celery || $(shape) != ha ]] || require_healthy worker
  if $dry_run; then
    local IFS=,
    tell_plan minutes "$minutes" jobs "$jobs" executor "$executor" faults "${kinds[*]}" <<EOT
Would run $jobs probes every second for $minutes minutes, and about twice a minute do one of: ${kinds[*]}.
Nothing was changed.
EOT
    return
  fi
  faults_file=$(mktemp)
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  local name begin status=0 reporter
  drill=$(in_app flask jobs drill-start --jobs "$jobs" --executor "$executor" --minutes "$((minutes + SLACK_MINUTES))" < /dev/null) ||
    exit 1 # the reason is above
  name=$drill
  step "the drill $drill takes $minutes minutes; --seed $seed repeats its choices"
  RANDOM=$seed
  begin=$SECONDS
  pause_for 15 # the probes' first fires, with nothing wrong
  while ((SECONDS - begin + 20 < minutes * 60)); do
    one_fault
    pause_for "$((SECONDS - begin + 15 < minutes * 60 ? 15 : 1))"
  done
  while ((SECONDS - begin < minutes * 60)); do
    pause_for 1
  done
  stop_probes || die "the probes could not be stopped; the reason is above"
  step "comparing"
  reporter=$(well)
  local -a verdict=(flask jobs drill-verdict "$name")
  ! $as_json || verdict+=(--json)
  docker exec --interactive "$reporter" "${verdict[@]}" --faults - < "$faults_file" || status=$?
  case $status in
    0 | 4) [[ -z $report ]] || copy_report "$reporter" "$name" ;;
    *) status=1 ;;
  esac
  exit "$status"
}

main "$@"
