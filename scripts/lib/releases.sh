# Releases: what this tree is, what the stack runs, what is kept of the one before, and the change from one to another.
#
# A release is known by its id, VERSION-FINGERPRINT: the tag of its images. Of the one that runs, and of the one before,
# .releases/ID/ keeps the files that it ran with. COMPOSE_FILE in .env names files below it after a way back, and those of
# the tree otherwise.
# shellcheck shell=bash

readonly RELEASES_DIR=$ROOT/.releases
# As long as a change is not done: kind=upgrade|rollback, from=ID, to=ID, count=SERVICE NUMBER for each, and what was done:
# backup=PATH, migrated=JSON, drill=NAME.
readonly UNDER_WAY=$RELEASES_DIR/under-way
readonly VERSION_PATTERN='[0-9]+\.[0-9]+\.[0-9]+'
readonly ID_PATTERN="^$VERSION_PATTERN-[0-9a-f]{12}\$"
# What a release is built from and runs with.
readonly RELEASE_SOURCES=(app gunicorn images nginx requirements supervisor wsgi.py)
readonly RELEASE_FILES=(compose.yaml compose env.example scripts runbooks)

# --- this tree -------------------------------------------------------------------------------------------------------

# Settings of a release that came as a bundle: its id, version, architecture, shape and images.
bundle_field() {
  sed -n "s/^$1=//p" "${2:-$ROOT}/RELEASE"
}

# The files of a bundle in the present folder, of which SHA256SUMS holds the checksums.
bundled_files() {
  find . -type f ! -path ./SHA256SUMS -printf '%P\n' | LC_ALL=C sort
}

tree_version() {
  if is_bundle; then
    bundle_field version
  else
    sed -n 's/^VERSION = "\(.*\)"$/\1/p' "$ROOT/app/version.py"
  fi
}

# Of what goes into the images, and of how Compose runs them.
tree_id() {
  if is_bundle; then
    bundle_field id
    return
  fi
  local fingerprint
  fingerprint=$(cd "$ROOT" && find "${RELEASE_SOURCES[@]}" compose compose.yaml -type f \
    ! -path '*/__pycache__/*' ! -name '*.pyc' ! -path 'images/build-settings/*' ! -name 'docker-compose.e2e*' -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-12)
  printf '%s-%s\n' "$(tree_version)" "$fingerprint"
}

# copy_release_files FOLDER PART...: those of the tree's parts that are there, without what Python left in them.
copy_release_files() {
  local folder=$1 part
  local -a there=()
  shift
  for part; do
    [[ ! -e $ROOT/$part ]] || there+=("$part")
  done
  tar -C "$ROOT" --exclude=__pycache__ --exclude='*.pyc' -cf - "${there[@]}" | tar -C "$folder" --no-same-owner -xf -
}

# --- releases that are kept ------------------------------------------------------------------------------------------

# keep_release ID [TAG]: keeps the files of a release, from a tag of this checkout or from the tree.
keep_release() {
  local folder=$RELEASES_DIR/$1 name
  [[ ! -d $folder ]] || return 0
  rm -rf "$folder.new"
  mkdir -p "$folder.new"
  if [[ -n ${2-} ]]; then
    git -C "$ROOT" archive "$2" | tar -C "$folder.new" --no-same-owner -xf -
  else
    copy_release_files "$folder.new" "${RELEASE_SOURCES[@]}" "${RELEASE_FILES[@]}" RELEASE
  fi
  # Settings and secrets are those of the stack, whichever release runs.
  for name in .env .secrets .build; do
    ln -sfn "../../$name" "$folder.new/$name"
  done
  mv "$folder.new" "$folder"
}

# The release that is to be known as ID ran before this script kept anything: where do its files come from? Prints a tag
# of this checkout, or nothing for the tree.
source_of_release() {
  local version=$1
  [[ $version != "$(tree_version)" ]] || return 0
  if is_tag "v$version"; then
    echo "v$version"
  else
    warn "the compose files of $version are not here (no tag v$version); a way back would use those of this tree"
  fi
}

is_tag() {
  has git && [[ -e $ROOT/.git ]] && git -C "$ROOT" rev-parse --quiet --verify "refs/tags/$1" > /dev/null
}

# noted current|previous: the id of that release; empty when nothing is noted.
noted() {
  [[ ! -f $RELEASES_DIR/$1 ]] || cat "$RELEASES_DIR/$1"
}

note() {
  mkdir -p "$RELEASES_DIR"
  printf '%s\n' "$2" > "$RELEASES_DIR/$1.new"
  mv "$RELEASES_DIR/$1.new" "$RELEASES_DIR/$1"
}

# Only the present release and the one before are kept.
forget_old_releases() {
  local folder id image
  for folder in "$RELEASES_DIR"/*/; do
    id=$(basename "$folder")
    [[ $id =~ $ID_PATTERN && $id != "$(noted current)" && $id != "$(noted previous)" ]] || continue
    for image in $(docker images --quiet --filter "reference=whalefall/*:$id" --format '{{.Repository}}:{{.Tag}}'); do
      docker rmi "$image" > /dev/null || warn "the image $image stays; something uses it"
    done
    rm -rf "$folder"
  done
}

# --- the release that Compose means ----------------------------------------------------------------------------------

# use_release ID: Compose, and every script that is called, mean this release from now on; .env does after keep_use.
use_release() {
  local file kept=$1
  local -a files=() named
  [[ $1 != "$(tree_id)" ]] || kept=
  # What a release lacks must not be missing in the next one that is asked about.
  [[ -v files_of_stack ]] || files_of_stack=$(setting COMPOSE_FILE compose/docker-compose.prod.yml)
  IFS=: read -ra named <<< "$files_of_stack"
  for file in "${named[@]}"; do
    file=${file#"$ROOT/"}
    [[ $file != .releases/*/* ]] || file=${file#.releases/*/}
    if [[ -n $kept && -e $RELEASES_DIR/$kept/$file ]]; then
      file=.releases/$kept/$file
    elif [[ -n $kept && $file == compose/* ]]; then
      warn "$1 has no $file: it is left out of COMPOSE_FILE in .env"
      continue
    fi
    files+=("$file")
  done
  COMPOSE_FILE=$(IFS=: && echo "${files[*]}")
  WHALEFALL_TAG=$1
  export COMPOSE_FILE WHALEFALL_TAG
}

keep_use() {
  keep_setting COMPOSE_FILE "$COMPOSE_FILE"
  keep_setting WHALEFALL_TAG "$WHALEFALL_TAG"
}

# What the environment says would overrule .env, and so every release that is kept there.
refuse_overruled_settings() {
  local name
  for name in WHALEFALL_TAG COMPOSE_FILE; do
    if [[ -v $name && ${!name} != "$(unset "$name" && setting "$name")" ]]; then
      die "$name is set in the environment, where it would overrule .env; put it into .env and unset it"
    fi
  done
}

# The images of the release that Compose means, without those that somebody else makes.
release_images() {
  compose config --images | sort --unique | grep -E "^whalefall/[a-z0-9_-]+:$WHALEFALL_TAG\$"
}

have_release_images() {
  local image
  for image in $(release_images); do
    have_image "$image" || return 1
  done
}

# --- the release that runs -------------------------------------------------------------------------------------------

# The version of an image, also of one from before images said it.
version_of_image() {
  local version
  version=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.version"}}' "$1")
  [[ $version =~ ^$VERSION_PATTERN$ ]] || version=$(in_image "$1" 'from app.version import VERSION; print(VERSION)')
  printf '%s\n' "$version"
}

# The revisions that a release's code knows, as `flask db usable-for` takes them.
revisions_of_image() {
  in_image "$1" 'from app.db.migrate import HEADS; print(",".join(f"{store}={head}" for store, head in HEADS.items()))'
}

in_image() {
  docker run --rm --network none --entrypoint python "$1" -c "$2" < /dev/null
}

# Sets running_id and running_version from the container that require_running_stack found.
find_running_release() {
  local name image
  name=$(docker inspect --format '{{.Config.Image}}' "$stack_container")
  image=$(docker inspect --format '{{.Image}}' "$stack_container")
  running_version=$(version_of_image "$image") || die "the image $name does not tell its version"
  running_id=${name##*:}
  if [[ ! $running_id =~ $ID_PATTERN || $(docker image inspect --format '{{.Id}}' "$name" 2> /dev/null) != "$image" ]]; then
    image=${image#sha256:}
    running_id=$running_version-${image:0:12}
  fi
}

project_containers() {
  docker ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$(project_name)" \
    --filter label=com.docker.compose.oneoff=False
}

# The images that the stack runs get the release's tag, whatever becomes of the names by which they were started.
tag_running_images() {
  local container name
  for container in $(project_containers); do
    name=$(docker inspect --format '{{.Config.Image}}' "$container")
    [[ $name == whalefall/* ]] || continue
    docker tag "$(docker inspect --format '{{.Image}}' "$container")" "${name%:*}:$1"
  done
}

# Some service in which the app runs; any image that holds it.
app_image() {
  release_images | grep -E -m 1 '^whalefall/(allinone|app):'
}

# --- the change ------------------------------------------------------------------------------------------------------

# begin_change upgrade|rollback FROM TO: notes them, and how many containers of each service run.
begin_change() {
  local kept
  [[ $(field_under_way kind) != "$1" || $(field_under_way from) != "$2" || $(field_under_way to) != "$3" ]] || return 0
  if [[ -f $UNDER_WAY ]]; then
    # Of a change that goes on, or is turned round: the numbers from before it began, and its backup.
    kept=$(grep -e '^count=' -e '^backup=' "$UNDER_WAY")
  else
    kept=$(compose config --services | while read -r service; do
      printf 'count=%s %s\n' "$service" "$(containers_of "$service" | wc -l)"
    done)
  fi
  mkdir -p "$RELEASES_DIR"
  printf 'kind=%s\nfrom=%s\nto=%s\n%s\n' "$1" "$2" "$3" "$kept" > "$UNDER_WAY.new"
  mv "$UNDER_WAY.new" "$UNDER_WAY"
}

# The releases before and after the upgrade that is under way, or is being taken back; nothing when none is.
older_under_way() {
  if [[ $(field_under_way kind) == rollback ]]; then field_under_way to; else field_under_way from; fi
}

newer_under_way() {
  if [[ $(field_under_way kind) == rollback ]]; then field_under_way from; else field_under_way to; fi
}

field_under_way() {
  [[ ! -f $UNDER_WAY ]] || sed -n "s/^$1=//p" "$UNDER_WAY"
}

add_under_way() {
  printf '%s=%s\n' "$1" "$2" >> "$UNDER_WAY"
}

# How many containers of a service there are to be; nothing for one that is new in a release.
count_of() {
  sed -n "s/^count=$1 //p" "$UNDER_WAY"
}

# Every container of the release that Compose means, as many as before, all healthy. Fails when that cannot be had.
replace_all() {
  local service services count found
  local -a old seen=() scale=() all
  services=$(compose config --services) || return 1
  for service in "${DOUBLED[@]}" "${SINGLE[@]}" $services; do
    [[ $'\n'$services$'\n' == *$'\n'"$service"$'\n'* && " ${seen[*]-} " != *" $service "* ]] || continue
    seen+=("$service")
    count=$(count_of "$service")
    [[ -n $count ]] || continue
    scale+=(--scale "$service=$count")
    found=$(outdated_containers "$service") || return 1
    old=()
    [[ -z $found ]] || mapfile -t old <<< "$found"
    ((${#old[@]} == 0)) || replace_containers "$service" "$count" "${old[@]}" || return 1
  done
  # What an interruption left stopped, what is new in this release, and what is no longer in it.
  compose up --detach --no-build --no-recreate --remove-orphans "${scale[@]}" >&2 < /dev/null || {
    warn "the stack could not be started; the reason is above"
    return 1
  }
  mapfile -t all < <(project_containers)
  wait_until_containers_healthy "$REPLACED_WITHIN_S" "${all[@]}" || {
    warn "$unhealthy_container is not healthy; its last words are above"
    return 1
  }
}

# A job really fires: a probe of a drill, made, fired and judged by the release that runs now. Sets fires, a line.
verify_fire() {
  local enabled
  fires=
  enabled=$(setting ENABLE_SCHEDULER true)
  if [[ ! ${enabled,,} =~ ^(true|1|yes)$ ]]; then
    warn "ENABLE_SCHEDULER is $enabled, so no job was seen to fire"
    return 0
  fi
  if probe; then return 0; fi
  [[ $(in_stack flask jobs status --json) == *'"code": "held"'* ]] || return 1
  warn "all jobs are held, so none was seen to fire"
}

# The drill's head start, and some fires.
readonly PROBE_FIRES_WITHIN_S=8
# One drill at a time: another one's, or one that was interrupted, ends by itself.
readonly DRILL_WITHIN_S=75

probe() {
  local drill executor=default found deadline=$((SECONDS + DRILL_WITHIN_S))
  for drill in $(field_under_way drill); do
    in_stack flask jobs drill-stop "$drill" > /dev/null || true # gone with the release that made it, or ended
  done
  [[ $(shape) != ha ]] || executor=celery # through a scheduler and a worker
  until drill=$(in_stack flask jobs drill-start --jobs 1 --minutes 1 --executor "$executor"); do
    ((SECONDS < deadline)) || return 1
    sleep 2
  done
  add_under_way drill "$drill"
  sleep "$PROBE_FIRES_WITHIN_S"
  in_stack flask jobs drill-stop "$drill" > /dev/null || return 1
  found=$(in_stack flask jobs drill-verdict "$drill") || {
    printf '%s\n' "$found" >&2
    return 1
  }
  [[ $found =~ ^proven:\ ([1-9][0-9]*\ fires\ due,\ [1-9][0-9]*\ starts\ seen) ]] || {
    warn "no job fired within $PROBE_FIRES_WITHIN_S s: $found"
    return 1
  }
  # shellcheck disable=SC2034 # for the report of whoever asked
  fires=${BASH_REMATCH[1]}
}
