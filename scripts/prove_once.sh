#!/usr/bin/env bash
# A drill for a staging stack: harms its schedulers while probe jobs fire, and says whether every fire started at most
# once and none vanished.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly HEALTHY_WITHIN_S=120
readonly KINDS=(kill freeze cut database)

minutes=5
jobs=20
executor=default
seed=$RANDOM
report=
agreed=false
kinds=()
drill=
faults_file=

usage() {
  cat <<'EOT'
Usage: scripts/prove_once.sh --yes [--minutes N] [--jobs N] [--executor NAME] [--faults LIST] [--seed N] [--report FOLDER]

For a staging stack, never for one that people rely on: runs probe jobs that fire every second, and every half minute
kills, freezes or cuts off a scheduler, chosen at random, or restarts the database. Then compares what was due, what the
probes wrote down and what the ledger says, and prints a verdict. A report (report.html with a picture of every fire,
report.json) lies in userdata/drills/ of the stack.

  --yes              needed: this harms the running stack
  --minutes N        how long, 1 to 600; 5 when not given
  --jobs N           how many probes, 1 to 200; 20 when not given
  --executor NAME    default, process or celery (celery: workers are harmed as well)
  --faults LIST      of kill, freeze, cut, database, separated by commas; all that the stack allows when not given
  --seed N           repeats the choices of an earlier drill
  --report FOLDER    copies the report to this folder of the host
  --help             this text

Exit status: 0 proven; 1 the drill could not be done; 2 wrong arguments; 4 not proven.
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --yes) agreed=true ;;
      --help)
        usage
        exit 0
        ;;
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
      is_whole "$2" 1 600 || usage_error "--minutes is '$2'; accepted: a whole number from 1 to 600"
      minutes=$2
      ;;
    --jobs)
      is_whole "$2" 1 200 || usage_error "--jobs is '$2'; accepted: a whole number from 1 to 200"
      jobs=$2
      ;;
    --seed)
      is_whole "$2" 0 32767 || usage_error "--seed is '$2'; accepted: a whole number from 0 to 32767"
      seed=$2
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

now() {
  date +%s.%N
}

containers_of() {
  docker ps --quiet --no-trunc --filter "label=com.docker.compose.project=$(project_name)" \
    --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False
}

name_of() {
  docker inspect --format '{{slice .Name 1}}' "$1"
}

# A command of the app in any of its containers that is well: the one before may just have been harmed.
in_app() {
  docker exec --interactive "$(well)" "$@"
}

well() {
  local container
  for container in $(containers_of "$SERVICE"); do
    if [[ $(docker inspect --format '{{.State.Health.Status}}' "$container") == healthy ]]; then
      echo "$container"
      return
    fi
  done
  die "no container of $SERVICE is healthy; docker compose ps tells more"
}

wait_until_healthy() {
  local deadline=$((SECONDS + HEALTHY_WITHIN_S))
  until [[ $(docker inspect --format '{{.State.Health.Status}}' "$1") == healthy ]]; do
    ((SECONDS < deadline)) || die "$(name_of "$1") is not healthy again after $HEALTHY_WITHIN_S s; docker logs $(name_of "$1") tells why"
    sleep 0.5
  done
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
    [[ " ${allowed[*]} " == *" $kind "* ]] || usage_error "--faults holds '$kind', which a stack of the shape $(shape) does not allow; it allows: ${allowed[*]}"
  done
}

# --- faults ----------------------------------------------------------------------------------------------------------

# The container and how to mend it, so that an interrupted drill leaves a whole stack.
harmed=
mend=

harm() {
  local kind=$1 target=$2 begin
  step "$kind $(name_of "$target")"
  harmed=$target
  begin=$(now)
  case $kind in
    kill)
      mend=start
      docker kill "$target" > /dev/null
      sleep 5
      ;;
    freeze)
      mend=unpause
      docker pause "$target" > /dev/null
      sleep 10
      ;;
    cut)
      mend=connect
      docker network disconnect "$(project_name)_stores" "$target"
      sleep 10
      ;;
    database) docker restart "$target" > /dev/null ;;
  esac
  put_right
  printf '{"kind": "%s", "target": "%s", "begin": %s, "end": %s}\n' "$kind" "$(name_of "$target")" "$begin" "$(now)" >> "$faults_file"
  wait_until_healthy "$target"
}

put_right() {
  case $mend in
    start) docker start "$harmed" > /dev/null ;;
    unpause) docker unpause "$harmed" > /dev/null ;;
    connect) docker network connect "$(project_name)_stores" "$harmed" ;;
  esac
  mend=
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
  put_right || warn "$(name_of "$harmed") could not be mended"
  if [[ -n $drill ]]; then
    in_app flask jobs drill-stop "$drill" < /dev/null || warn "the probes still run: flask jobs drill-stop $drill, in a container of the app, stops them"
  fi
  rm -f "$faults_file"
  exit "$status"
}

main() {
  parse_arguments "$@"
  $agreed || usage_error "this harms the running stack: --yes says that nobody relies on it"
  cd "$ROOT"
  require_running_stack
  choose_kinds
  RANDOM=$seed
  step "the drill takes $minutes minutes; its choices are repeated by --seed $seed"
  faults_file=$(mktemp)
  trap clean_up EXIT

  local name end status=0 reporter
  name=$(in_app flask jobs drill-start --jobs "$jobs" --executor "$executor" < /dev/null) || die "the probes could not be made; the reason is above"
  drill=$name
  end=$((SECONDS + minutes * 60))
  sleep 15 # the probes' first fires, with nothing wrong
  while ((SECONDS + 20 < end)); do
    one_fault
    sleep "$((SECONDS + 15 < end ? 15 : 1))"
  done
  while ((SECONDS < end)); do
    sleep 1
  done
  in_app flask jobs drill-stop "$name" < /dev/null || die "the probes could not be stopped; the reason is above"
  drill=
  step "comparing"
  reporter=$(well)
  docker exec --interactive "$reporter" flask jobs drill-verdict "$name" --faults - < "$faults_file" || status=$?
  if [[ -n $report ]]; then
    docker cp --quiet "$reporter:/app/userdata/drills/$name/." "$report" > /dev/null || die "the report could not be copied to $report"
    step "the report is in $report"
  fi
  exit "$status"
}

main "$@"
