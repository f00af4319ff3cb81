# Replacing the containers of a running stack. Of what there are several, a new one is healthy before an old one goes.
# shellcheck shell=bash

# shellcheck source=scripts/lib/connections.sh
source "$ROOT/scripts/lib/connections.sh"

# shellcheck disable=SC2034 # in the order of replacing: what others need comes late
readonly DOUBLED=(worker scheduler web) SINGLE=(valkey postgres nginx whalefall)
readonly REPLACED_WITHIN_S=120

# Every container of a service, also those that do not run.
all_containers_of() {
  docker ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$(project_name)" \
    --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False | tac
}

# outdated_containers SERVICE: those that `docker compose up` would replace, by the present settings and images. Those
# that are not healthy come first.
outdated_containers() {
  local wanted container hash image state
  local -a healthy=()
  wanted=$(compose config --hash "$1") || return 1
  wanted=${wanted##* }
  for container in $(all_containers_of "$1"); do
    IFS='|' read -r hash image state < <(docker inspect --format \
      '{{index .Config.Labels "com.docker.compose.config-hash"}}|{{.Config.Image}}|{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}' \
      "$container")
    if [[ $hash != "$wanted" || $(docker inspect --format '{{.Image}}' "$container") != $(docker image inspect --format '{{.Id}}' "$image") ]]; then
      if [[ $state == healthy || $state == running ]]; then healthy+=("$container"); else echo "$container"; fi
    fi
  done
  ((${#healthy[@]} == 0)) || printf '%s\n' "${healthy[@]}"
}

# replace_containers SERVICE COUNT CONTAINER...: the containers go, and COUNT new ones are healthy in the end. Fails, and
# says why, when that cannot be had; what is old and was not replaced yet still runs.
replace_containers() {
  if [[ " ${DOUBLED[*]} " == *" $1 "* ]]; then
    replace_doubled "$@"
  else
    replace_single "$1"
  fi
}

# At no moment are there fewer than before.
replace_doubled() {
  local service=$1 count=$2 old number=0
  shift 2
  local -a present=()
  # One that an interruption left behind stopped would count for Compose as one that is there.
  for old; do
    [[ $(docker inspect --format '{{.State.Running}}' "$old") == true ]] || docker rm --force "$old" > /dev/null || return 1
  done
  for old; do
    [[ -n $(docker ps --quiet --no-trunc --filter "id=$old") ]] || continue
    number=$((number + 1))
    step "$service: replacing $number of $#"
    mapfile -t present < <(containers_of "$service")
    if ((${#present[@]} <= count)); then
      scale_service "$service" "$((${#present[@]} + 1))" || return 1
      mapfile -t present < <(containers_of "$service")
      healthy_without "${present[@]}" -- "$@" || return 1
    fi
    docker stop "$old" > /dev/null && docker rm "$old" > /dev/null || return 1
  done
  scale_service "$service" "$count" || return 1
  mapfile -t present < <(containers_of "$service")
  healthy_without "${present[@]}" -- || return 1
}

# Not with --no-deps: Compose would make containers that it takes for outdated at the next plain `up`.
scale_service() {
  compose up --detach --no-build --no-recreate --scale "$1=$2" "$1" >&2 < /dev/null || {
    warn "no further $1 could be started; the reason is above"
    return 1
  }
}

# healthy_without CONTAINER... -- OLD...: waits for the containers that are not among the old ones.
healthy_without() {
  local -a wanted=()
  while [[ $1 != -- ]]; do
    wanted+=("$1")
    shift
  done
  shift
  local container
  local -a new=()
  for container in "${wanted[@]}"; do
    [[ " $* " == *" $container "* ]] || new+=("$container")
  done
  ((${#new[@]})) || return 0
  wait_until_containers_healthy "$REPLACED_WITHIN_S" "${new[@]}" || {
    warn "$unhealthy_container is not healthy; its last words are above"
    return 1
  }
}

replace_single() {
  local service=$1
  local -a now
  step "$service: replacing it"
  [[ $service != nginx ]] || hold_connections
  compose up --detach --no-build --no-deps --force-recreate "$service" >&2 < /dev/null || {
    release_connections
    warn "$service could not be started; the reason is above"
    return 1
  }
  mapfile -t now < <(containers_of "$service")
  [[ $service != nginx ]] || wait_until_nginx_answers "${now[@]}"
  release_connections
  ((${#now[@]})) || {
    warn "$service does not run"
    return 1
  }
  healthy_without "${now[@]}" --
}

# Docker looks every few seconds only; connections are held no longer than they must be.
wait_until_nginx_answers() {
  local deadline=$((SECONDS + REPLACED_WITHIN_S))
  until docker exec "$1" healthcheck.sh > /dev/null 2>&1; do
    ((SECONDS < deadline)) || break # whoever waits for it to be healthy says why
    sleep 0.1
  done
}
