# Stopping what uses the stores, working on them meanwhile, and starting it again, in every shape. Sourced by the scripts
# that replace a store.
# shellcheck shell=bash

readonly PROGRAMS=(whalefall_web whalefall_scheduler) # of the one container, in the order of stopping
readonly SETTLED_WITHIN_S=30 # longer than a program's startsecs
readonly HEALTHY_WITHIN_S=90

case $(shape) in
  prod) services=(whalefall) ;;
  split) services=(web scheduler) ;;
  ha) services=(web scheduler worker) ;;
esac
readonly services # that use the stores
supervised=true   # the container keeps running, and Supervisor in it stops and starts the programs
runs=true         # the stack keeps running, so that commands can be given inside it
stopped=false     # between stop and start: a failure must not leave the stack down

is_healthy() {
  local -a asked=()
  [[ $(shape) == prod ]] || asked=(5002 /api/v1/scheduler/health/ready)
  in_stack python3 -I -S /usr/local/bin/healthcheck.py "${asked[@]}" > /dev/null 2>&1
}

# A container that starts over and over (a damaged store does that) is stopped as a whole, and looked after from a
# container beside it.
see_what_runs() {
  local status restarts
  if [[ $(shape) != prod ]]; then
    supervised=false
    is_healthy || runs=false
    return
  fi
  restarts=$(restarts_of_stack)
  while ! is_healthy; do
    # Its exit code tells that some are stopped, as after an operation that was interrupted: no failure here.
    status=$(in_stack supervisorctl status "${PROGRAMS[@]}" 2> /dev/null) || true
    if [[ $(restarts_of_stack) != "$restarts" || ! $status =~ (RUNNING|STOPPED|STARTING) ||
      $status =~ (BACKOFF|EXITED|FATAL|UNKNOWN) ]]; then
      supervised=false
      runs=false
      warn "the stack does not keep running; working in a container beside it"
      return 0
    fi
    # One that runs may be about to end: only a stopped one stays as it is.
    [[ $status != *STOPPED* || $status == *STARTING* ]] || return 0
    [[ $SECONDS -lt $SETTLED_WITHIN_S ]] || return 0
    sleep 1
  done
}

restarts_of_stack() {
  # shellcheck disable=SC2154 # require_stack sets it
  docker inspect --format '{{.RestartCount}}' "$stack_container"
}

# Standard input goes to the command.
flask_with_input() {
  if $supervised || { $runs && ! $stopped; }; then
    docker compose exec -T "$SERVICE" flask "$@"
  else
    docker compose run --rm -T --no-deps "$SERVICE" flask "$@"
  fi
}

flask_in_stack() {
  flask_with_input "$@" < /dev/null
}

stop_programs() {
  stopped=true
  if $supervised; then
    in_stack supervisorctl stop "${PROGRAMS[@]}" >&2
  else
    docker compose stop "${services[@]}" >&2
  fi
}

start_programs() {
  local program
  if $supervised; then
    # Both at once and not waited for: supervisorctl returns only when one has run for its startsecs, and nobody fires
    # meanwhile. What follows sees for itself whether they work.
    for program in "${PROGRAMS[@]}"; do
      in_stack supervisorctl start "$program" > /dev/null &
    done
  else
    docker compose start "${services[@]}" >&2
  fi
  stopped=false
}

wait_until_healthy() {
  local deadline=$((SECONDS + HEALTHY_WITHIN_S)) name
  local -a found=()
  if $supervised; then
    until is_healthy; do
      [[ $SECONDS -lt $deadline ]] || die "the stack is not healthy; docker compose logs $SERVICE says why"
      sleep 0.5
    done
  else
    for name in "${services[@]}"; do mapfile -t -O "${#found[@]}" found < <(containers_of "$name"); done
    # shellcheck disable=SC2154 # that function sets unhealthy_container
    wait_until_containers_healthy "$HEALTHY_WITHIN_S" "${found[@]}" ||
      die "$unhealthy_container is not healthy; its last words are above"
  fi
  runs=true
}

# For a trap: however a script ends, what it stopped runs again.
start_what_was_stopped() {
  $stopped || return 0
  warn "not finished: starting the stack again"
  start_programs || warn "it does not start; docker compose logs $SERVICE says why"
}
