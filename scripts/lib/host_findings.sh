# What only the host can see of what is wrong: the engine, containers, ports, mounted files. For scripts/doctor.sh, which
# sources it after lib.sh. What the app itself can see is in app/services/operations/doctor/findings.py.
# shellcheck shell=bash

readonly DISK_FULL_MB=200 DISK_LOW_MB=1024
readonly RESTARTS_MANY=2

found_text=()
found_json=()
# shellcheck disable=SC2034 # scripts/doctor.sh reads it
found_worst=note

# finding SEVERITY ID WHAT MEANING COMMAND RUNBOOK; the severities and the form are those of that module.
finding() {
  local severity=$1 id=$2 what=$3 means=$4 command=$5 page=$6
  found_text+=("$(printf '%-7s %s: %s\n        means: %s\n        next:  %s\n        more:  %s' \
    "${severity^^}" "$id" "$what" "$means" "$command" "$page")")
  found_json+=("$(printf '{"id": "%s", "severity": "%s", "what": "%s", "means": "%s", "command": "%s", "runbook": "%s"}' \
    "$id" "$severity" "$(json_escaped "$what")" "$(json_escaped "$means")" "$(json_escaped "$command")" "$page")")
  # shellcheck disable=SC2034 # as above
  [[ $severity == note ]] || found_worst=$severity
}

# --- the engine and the settings -------------------------------------------------------------------------------------

# Fails when nothing further can be looked at.
look_at_engine() {
  if ! has docker; then
    finding error engine-missing "docker is not installed here" "Nothing can run without it." \
      "scripts/up.sh --install-engine" README.md
    return 1
  fi
  if ! docker info > /dev/null 2>&1; then
    finding error engine-down "the Docker engine does not answer" \
      "It is not running, or this user may not use it. Containers, and with them the jobs, may be down as well." \
      "sudo systemctl status docker; sudo systemctl start docker" README.md
    return 1
  fi
}

look_at_settings() {
  local problem
  problem=$(compose config --quiet 2>&1) && return
  finding error settings-invalid "Compose cannot read the stack: $(tail -n 1 <<< "$problem")" \
    "A compose file, .env or a variable of the shell is wrong. What runs goes on; nothing can be started anew." \
    "docker compose config --quiet" README.md
}

# --- containers ------------------------------------------------------------------------------------------------------

# Of a container: name, service, state, exit code, whether memory ran out, restarts, health, and the engine's own words.
readonly CONTAINER_FIELDS='{{slice .Name 1}}|{{index .Config.Labels "com.docker.compose.service"}}|{{.State.Status}}|{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.RestartCount}}|{{if .State.Health}}{{.State.Health.Status}}{{end}}|{{.State.Error}}'

look_at_containers() {
  local id
  local -a ids
  mapfile -t ids < <(docker ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$(project_name)" \
    --filter label=com.docker.compose.oneoff=False)
  if ((${#ids[@]} == 0)); then
    finding error stack-absent "the project $(project_name) has no containers" \
      "It was never brought up here, or was taken down; its volumes keep the data." "scripts/up.sh" README.md
    return
  fi
  for id in "${ids[@]}"; do
    look_at_container "$id"
  done
  look_for_absent_services
  look_at_enable_scheduler
}

look_at_container() {
  local name service state code out_of_memory restarts health error
  # One that was removed since it was listed is no finding.
  IFS='|' read -r name service state code out_of_memory restarts health error \
    < <(docker inspect --format "$CONTAINER_FIELDS" "$1" 2> /dev/null) || return 0
  if [[ $out_of_memory == true ]] || { [[ $state == running ]] && has_killed_for_memory "$1"; }; then
    finding error out-of-memory "in $name a process was killed for want of memory" \
      "It reached MEMORY_LIMIT. Runs that it had going are lost, and on record as such." \
      "docker stats --no-stream $name; grep MEMORY_LIMIT .env" runbooks/job-did-not-fire.md
  fi
  case $state in
    paused)
      finding error container-paused "$name is frozen (docker pause)" \
        "It does nothing until it is woken; runs that it had going may be called lost." \
        "docker unpause $name" runbooks/add-or-lose-a-scheduler.md
      ;;
    restarting) say_restarting "$1" "$name" "$service" "$restarts" ;;
    exited | created | dead)
      finding error container-stopped "$name is not running ($state, exit code $code)${error:+: $error}" \
        "$(what_stops_with "$service")" "docker compose up --detach $service" "$(page_of "$service")"
      ;;
    running)
      if ((restarts >= RESTARTS_MANY)) && [[ $health != healthy ]]; then
        say_restarting "$1" "$name" "$service" "$restarts"
      elif [[ $health == unhealthy ]]; then
        finding error container-unhealthy "$name is unhealthy: $(last_health "$1")" \
          "It runs, and does not do its work." "docker compose logs --tail 50 $service" "$(page_of "$service")"
      elif [[ $health == starting ]]; then
        finding note container-starting "$name is still starting" "Look again in a minute." "docker compose ps" \
          "$(page_of "$service")"
      fi
      ;;
  esac
}

# Of a container that survived it only its control group tells (version 2, and version 1).
has_killed_for_memory() {
  local counts
  # One of the two is not there.
  counts=$(timeout 10 docker exec "$1" cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control \
    2> /dev/null) || true
  grep -q '^oom_kill [1-9]' <<< "$counts"
}

say_restarting() {
  finding error container-restarting "$2 starts over and over ($4 times); its last words: $(last_words "$1")" \
    "Its program ends at the start. $(what_stops_with "$3")" "docker compose logs --tail 50 $3" "$(page_of "$3")"
}

what_stops_with() {
  case $1 in
    whalefall) echo "Pages, API and jobs are all down." ;;
    scheduler) echo "Jobs fire only as long as another scheduler runs; their moments are caught up or missed." ;;
    worker) echo "Jobs on the executor celery wait for another worker." ;;
    nginx | web) echo "Pages and API are out of reach unless another one runs; jobs go on." ;;
    postgres) echo "The stores are away: nothing is claimed and no page answers until it is back." ;;
    valkey) echo "Jobs on the executor celery wait; all others fire." ;;
    *) echo "What it does is missing." ;;
  esac
}

page_of() {
  case $1 in
    scheduler | worker) echo runbooks/add-or-lose-a-scheduler.md ;;
    postgres) echo runbooks/database-is-locked.md ;;
    valkey) echo runbooks/broker-down.md ;;
    *) echo runbooks/scheduler-api-409.md ;;
  esac
}

last_words() {
  docker logs --tail 1 "$1" 2>&1 | tail -n 1 | cut -c 1-400
}

last_health() {
  docker inspect --format '{{range .State.Health.Log}}{{.Output}}{{end}}' "$1" | grep -v '^$' | tail -n 1 | cut -c 1-400
}

look_for_absent_services() {
  local service present
  present=$(docker ps --all --filter "label=com.docker.compose.project=$(project_name)" \
    --filter label=com.docker.compose.oneoff=False --format '{{.Label "com.docker.compose.service"}}')
  for service in $(compose config --services 2> /dev/null); do
    if ! grep -qxF "$service" <<< "$present"; then
      finding error service-absent "there is no container of $service" "$(what_stops_with "$service")" \
        "docker compose up --detach $service" "$(page_of "$service")"
    fi
  done
}

# The same words as in app/settings.py.
look_at_enable_scheduler() {
  local container value
  # shellcheck disable=SC2153 # stack.sh sets SERVICE
  for container in $(docker ps --all --quiet --filter "label=com.docker.compose.project=$(project_name)" \
    --filter "label=com.docker.compose.service=$SERVICE" --filter label=com.docker.compose.oneoff=False); do
    value=$(docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$container" |
      sed -n 's/^ENABLE_SCHEDULER=//p' | tail -n 1 | tr '[:upper:]' '[:lower:]')
    value=${value//[[:space:]]/}
    case ${value:-true} in
      true | 1 | yes) ;;
      *)
        finding error scheduler-disabled "ENABLE_SCHEDULER is '$value' in $SERVICE; accepted to switch it on: true, 1, yes" \
          "No scheduler runs there, on purpose: its API answers 409. Right for a surplus machine, wrong for the only one." \
          "echo ENABLE_SCHEDULER=true >> .env; docker compose up --detach" \
          runbooks/scheduler-api-409.md
        return
        ;;
    esac
  done
}

# --- around the stack ------------------------------------------------------------------------------------------------

# Only where nothing of this stack has the port.
look_at_port() {
  local port holder
  port=$(setting HTTP_PORT 80)
  if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port < 1 || 10#$port > 65535)); then
    finding error port-invalid "HTTP_PORT is '$port'; accepted: a port number from 1 to 65535" \
      "The stack cannot be started." "grep HTTP_PORT .env" README.md
    return
  fi
  [[ -z ${DOCKER_HOST-} ]] || return 0 # the ports of another machine
  holder=$(docker ps --filter "publish=$port" --format '{{.Names}} {{.Label "com.docker.compose.project"}}' | head -n 1)
  if [[ ${holder#* } == "$(project_name)" ]] || port_is_free "$port"; then
    return
  fi
  [[ -n $holder ]] && holder="the container ${holder% *}"
  finding error port-taken "port $port is taken by ${holder:-another program}" \
    "nginx cannot publish it, so pages and API are out of reach; in the shape prod nothing starts at all." \
    "ss --listening --tcp --processes 'sport = :$port'; HTTP_PORT=8080 scripts/up.sh" runbooks/two-deployments.md
}

look_at_disk() {
  local folder free
  folder=$(docker info --format '{{.DockerRootDir}}')
  [[ -d $folder ]] || return 0 # of an engine elsewhere
  free=$(df --output=avail -BM "$folder" | tail -n 1 | tr -dc '0-9')
  if ((free < DISK_FULL_MB)); then
    finding error host-disk-full "$folder has $free MB left" \
      "Containers, logs and volumes lie there: soon nothing can be written, and no run is claimed." \
      "docker system df; docker system prune" runbooks/disk-full.md
  elif ((free < DISK_LOW_MB)); then
    finding warning host-disk-low "$folder has $free MB left" "Containers, logs and volumes lie there." \
      "docker system df; docker system prune" runbooks/disk-full.md
  fi
}

# Who else is on this machine: on this stack's data, or with schedulers of their own.
look_at_neighbours() {
  local names
  names=$(docker ps --filter "volume=$(project_name)_userdata" \
    --format '{{.Names}} {{.Label "com.docker.compose.project"}} {{.Label "com.docker.compose.oneoff"}}' |
    awk -v own="$(project_name)" '$2 != own || $3 == "True" { print $1 }' | paste -s -d ' ')
  if [[ -n $names ]]; then
    finding warning volume-shared "containers outside this stack use its data volume: $names" \
      "Somebody looks after the data, or a second deployment works on it." \
      "docker inspect --format '{{.Config.Cmd}} {{.Config.Labels}}' $names" runbooks/two-deployments.md
  fi
  names=$(docker ps --filter label=com.docker.compose.oneoff=False \
    --format '{{.Label "com.docker.compose.project"}} {{.Label "com.docker.compose.service"}} {{.Image}}' |
    awk -v own="$(project_name)" '$1 != own && ($2 == "scheduler" || $2 == "whalefall") && $3 ~ /^whalefall\// { print $1 }' |
    sort -u | paste -s -d ' ')
  if [[ -n $names ]]; then
    finding note other-stack "other stacks on this machine fire jobs of their own: $names" \
      "Their job stores are their own: a job that is in both runs in both." \
      "docker compose ls" runbooks/two-deployments.md
  fi
}

# Files of the host that the containers were given: gone, or no longer what each of them has.
look_at_secrets() {
  [[ -z ${DOCKER_HOST-} ]] || return 0
  local container name source target inside
  local -A targets=() differs=()
  local -a sources
  for container in $(docker ps --all --quiet --filter "label=com.docker.compose.project=$(project_name)" \
    --filter label=com.docker.compose.oneoff=False); do
    name=$(name_of "$container")
    inside=$(timeout 10 docker exec "$container" sh -c 'sha256sum /run/secrets/*' 2> /dev/null) || inside=
    while IFS='|' read -r source target; do
      [[ $target == /run/secrets/* ]] || continue
      targets[$source]=$target
      if [[ -s $source && -r $source && -n $inside && $inside != *"$(sha256sum < "$source" | cut -c 1-64)  $target"* ]]; then
        differs[$source]+="${differs[$source]:+, }$name"
      fi
    done < <(docker inspect --format '{{range .Mounts}}{{.Source}}|{{.Destination}}{{println}}{{end}}' "$container")
  done
  ((${#targets[@]} > 0)) || return 0
  mapfile -t sources < <(printf '%s\n' "${!targets[@]}" | sort)
  for source in "${sources[@]}"; do
    if [[ ! -s $source ]]; then
      finding error secret-missing "$source is gone or empty" \
        "The stack cannot be started again without it; what runs still has the old one." \
        "scripts/up.sh" runbooks/forgotten-admin-password.md
    elif [[ -n ${differs[$source]-} ]]; then
      finding warning secret-changed "$source is not what these containers have: ${differs[$source]}" \
        "It was replaced, and they were not made anew: the old one is still in force there." \
        "docker compose up --detach --force-recreate" runbooks/forgotten-admin-password.md
    fi
    if [[ -e $source.next ]]; then
      finding warning rotation-unfinished "$source.next is left of a rotation that was interrupted" \
        "Some containers may have the new secret, some the old one." \
        "scripts/rotate_secrets.sh --yes $(basename "${targets[$source]}")" runbooks/forgotten-admin-password.md
    fi
  done
}
