# What the drills share: probes that fire while a container is harmed, and the waiting for it to be well again.
# scripts/prove_once.sh and scripts/failover_drill.sh source it after lib.sh.
# shellcheck shell=bash

readonly HEALTHY_WITHIN_S=120
# For a container that takes its time; then the probes stop by themselves.
# shellcheck disable=SC2034 # the scripts read it
readonly SLACK_MINUTES=10

# The drill whose probes are in the store; empty when they are gone.
drill=

now() {
  date +%s.%N
}

# Ctrl-C reaches every process of the terminal's foreground group: not a command that is just changing something.
undisturbed() {
  setsid --wait "$@"
}

# A wait that an interruption ends at once.
pause_for() {
  sleep "$1" &
  wait "$!"
}

# A command of the app in any of its containers that is well: the one before may just have been harmed.
in_app() {
  local container
  container=$(well) || return 1
  undisturbed docker exec --interactive "$container" "$@"
}

well() {
  local container
  # shellcheck disable=SC2153 # stack.sh sets it
  for container in $(containers_of "$SERVICE"); do
    if [[ $(health_of "$container") == healthy ]]; then
      echo "$container"
      return 0 # said, because it also runs in a trap, where a bare return repeats the status from before
    fi
  done
  die "no container of $SERVICE is healthy; docker compose ps tells more"
}

wait_until_healthy() {
  local begin=$SECONDS
  until [[ $(health_of "$1") == healthy ]]; do
    ((SECONDS - begin < HEALTHY_WITHIN_S)) ||
      die "$(title_of "$1") is not healthy again after $HEALTHY_WITHIN_S s; docker logs $(name_of "$1") tells why"
    pause_for 0.5
  done
  step "$(title_of "$1") is healthy again, $((SECONDS - begin)) s after it was mended"
}

# One that is still starting is waited for; one that is not well is not harmed further.
require_healthy() {
  local service container begin=$SECONDS
  for service in "$@"; do
    [[ -n $(containers_of "$service") ]] || die "no container of $service runs; scripts/up.sh starts it"
    for container in $(containers_of "$service"); do
      while [[ $(health_of "$container") == starting ]] && ((SECONDS - begin < HEALTHY_WITHIN_S)); do
        sleep 0.5
      done
      [[ $(health_of "$container") == healthy ]] ||
        die "$(title_of "$container") is $(health_of "$container"); a drill begins with a healthy stack, docker logs $(name_of "$container") tells more"
    done
  done
}

# As soon as a container is well again.
stop_probes() {
  local begin=$SECONDS
  until (well > /dev/null 2>&1); do
    ((SECONDS - begin < HEALTHY_WITHIN_S)) || return 1
    pause_for 0.5
  done
  in_app flask jobs drill-stop "$drill" < /dev/null && drill=
}
