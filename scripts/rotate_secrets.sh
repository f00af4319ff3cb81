#!/usr/bin/env bash
# Gives a running stack new secrets, one, several or all of them; fires go on.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/replace.sh
source "$ROOT/scripts/lib/replace.sh"

readonly KNOWN=(api_token admin_password secret_key postgres_password valkey_password)

names=()
replaced=() # services whose containers are made anew

usage() {
  cat <<'EOT'
Usage: scripts/rotate_secrets.sh [--yes] [--dry-run] [--json] all|SECRET...

Makes new secrets and brings them into use; no fire fails or is missed for it. The old one is valid until the new one is
in use. The new ones are in the same files as the old ones (.secrets/).

  api_token          whoever calls the API reads the file again; nothing is restarted
  admin_password     of the user `admin`, whose sessions end; containers of the app are replaced, one after the other
  secret_key         signs sessions: all of them end; containers of the app are replaced
  postgres_password  of the shape ha; containers of the app are replaced
  valkey_password    of the shape ha; containers of the app are replaced
  all                every one that this shape has; containers are replaced once

In the shape prod, replacing the one container means some seconds without pages and API; fires of that time run late.
Safe to run again, also after it was interrupted: it goes on with the secrets that it had made.

  --yes       do not ask
  --dry-run   say what would be done; change nothing
  --json      one line of JSON: {"rotated": [names], "replaced": [services]}
  --help      this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    if [[ $1 == all ]]; then
      mapfile -t names < <(secrets_of_shape)
    elif [[ " ${KNOWN[*]} " == *" $1 "* ]]; then
      names+=("$1")
    elif ! parse_common_option "$1"; then
      usage_error "unknown argument '$1'; accepted: all, ${KNOWN[*]/%/,} --yes, --dry-run, --json, --help"
    fi
    shift
  done
  ((${#names[@]})) || usage_error "no secret is named; accepted: all, ${KNOWN[*]/%/,} --help"
  local name
  for name in "${names[@]}"; do
    [[ $'\n'$(secrets_of_shape)$'\n' == *$'\n'"$name"$'\n'* ]] || usage_error "a stack of the shape $(shape) has no $name"
  done
}

secrets_of_shape() {
  printf '%s\n' api_token admin_password secret_key
  [[ $(shape) != ha ]] || printf '%s\n' postgres_password valkey_password
}

wanted() {
  [[ " ${names[*]} " == *" $1 "* ]]
}

# The services that run the app, in the order of replacing.
services_of_app() {
  case $(shape) in
    prod) echo whalefall ;;
    split) printf '%s\n' scheduler web ;;
    ha) printf '%s\n' worker scheduler web ;;
  esac
}

# Where the running stack has a secret from: Compose mounts the file itself.
file_of() {
  local file
  file=$(docker inspect --format '{{range .Mounts}}{{.Destination}}|{{.Source}}{{println}}{{end}}' "$stack_container" |
    sed -n "s,^/run/secrets/$1|,,p")
  [[ -n $file ]] || die "the containers have no file for $1; Compose gives them one as the secret $1"
  printf '%s\n' "$file"
}

check() {
  local name file
  [[ -z ${DOCKER_HOST-} || $DOCKER_HOST == unix://* ]] || die "the secrets' files are on the engine's machine; run this there"
  ! wanted postgres_password || [[ -z $(setting JOBSTORE_URL)$(setting DATABASE_URL) ]] ||
    die "JOBSTORE_URL or DATABASE_URL names a database of your own; change its password there"
  ! wanted valkey_password || [[ -z $(setting CELERY_BROKER_URL) ]] ||
    die "CELERY_BROKER_URL names a broker of your own; change its password there"
  for name in "${names[@]}"; do
    file=$(file_of "$name")
    [[ -O $file ]] || is_root || die "$file belongs to somebody else; run this as its owner"
    [[ -s $file ]] || die "$file is gone or empty; scripts/up.sh makes it again"
  done
}

# --- one secret ------------------------------------------------------------------------------------------------------

# The new secret waits beside the old one until it is in use everywhere: a second run goes on with it.
make_next() {
  local next=$1.next
  [[ ! -s $next ]] || return 0
  (umask 077 && random_text "$2" > "$next.new" && mv "$next.new" "$next")
}

# In place, in one write: the containers have the file itself mounted, not its name, and see the new content at once.
put_in_place() {
  chmod u+w "$1"
  dd if="$1.next" of="$1" conv=notrunc bs=64K status=none
  truncate --size="$(stat --format %s "$1.next")" "$1"
  chmod 0444 "$1"
}

bring_in() {
  local name=$1 file
  file=$(file_of "$name")
  step "$name: bringing in a new one"
  make_next "$file" "$(length_of "$name")"
  case $name in
    postgres_password) change_in_postgres "$file" ;;
    valkey_password) add_in_valkey "$file" && put_in_place "$file" ;;
    *) put_in_place "$file" ;;
  esac
}

# The same as in scripts/lib/secrets.sh.
length_of() {
  case $1 in
    admin_password) echo 20 ;;
    secret_key) echo 64 ;;
    *) echo 48 ;;
  esac
}

# A role has one password. Connections that are open stay; the app reads the file for each new one, so that only what is
# asked between the change and the write, some milliseconds, is refused.
change_in_postgres() {
  local answer
  # shellcheck disable=SC2016 # for psql
  answer=$({
    printf '\\set secret %s\n' "'$(< "$1.next")'"
    printf 'ALTER ROLE whalefall PASSWORD :%s;\n' "'secret'"
  } | docker compose exec -T postgres psql --no-psqlrc --username=whalefall --dbname=whalefall --set=ON_ERROR_STOP=1 2>&1 |
    while read -r answer; do
      [[ $answer != "ALTER ROLE" ]] || put_in_place "$1" # not a moment later
      printf '%s\n' "$answer"
    done) || true # what it answered is looked at
  [[ $answer == *"ALTER ROLE"* ]] || die "PostgreSQL did not take its new password: $answer"
}

# The user has both passwords until every container has the new one.
add_in_valkey() {
  local answer
  answer=$(printf '>%s' "$(< "$1.next")" | valkey_cli -x ACL SETUSER default 2>&1) || true # what it answered is looked at
  [[ $answer == OK* ]] || die "Valkey did not take a second password: $answer"
}

drop_old_in_valkey() {
  local answer
  step "valkey_password: the old one ends"
  answer=$(printf '%s' "$(< "$1")" | valkey_cli -x CONFIG SET requirepass 2>&1) || true # what it answered is looked at
  [[ $answer == OK* ]] || die "Valkey did not drop its old password: $answer"
}

valkey_cli() {
  # shellcheck disable=SC2016 # for the container's shell
  docker compose exec -T valkey sh -c 'REDISCLI_AUTH=$(cat /run/secrets/valkey_password) exec valkey-cli "$@"' - "$@"
}

# --- all of them -----------------------------------------------------------------------------------------------------

# The token is read from the file for every request, where the containers have this very file.
needs_replacing() {
  local name container file
  for name in "${names[@]}"; do
    [[ $name == api_token ]] || return 0
  done
  file=$(file_of api_token)
  for container in $(for service in $(services_of_app); do containers_of "$service"; done); do
    docker exec "$container" cat /run/secrets/api_token 2> /dev/null | cmp --silent - "$file" || return 0
  done
  return 1
}

replace_app() {
  local service
  local -a present
  for service in $(services_of_app); do
    mapfile -t present < <(containers_of "$service")
    ((${#present[@]})) || continue
    replace_containers "$service" "${#present[@]}" "${present[@]}" ||
      die "$service could not be replaced; the reason is above. Run this again when it is gone: it goes on where it stopped"
    replaced+=("$service")
  done
}

# What a process that knew the old password may have written back is put right by any command: it builds the app.
settle_admin() {
  step "admin_password: in force"
  in_stack flask jobs status > /dev/null
}

# With everything that the app itself uses: the token through nginx, the stores, the broker.
verify() {
  local url=http://nginx:8080 found
  [[ $(shape) != prod ]] || url=http://127.0.0.1:8080
  step "verifying"
  found=$(in_stack python3 -m app.cli.doctor --project "$(project_name)" --service "$SERVICE" --shape "$(shape)" --url "$url") ||
    [[ $? == 3 ]] || die "the new secrets could not be verified; the reason is above"
  found=$(grep -E '^[A-Z]+ +(token-refused|api-unreachable|store-unreachable|broker-unreachable|settings-refused):' \
    <<< "$found") || return 0
  die "the new secrets do not work everywhere: $(head -n 1 <<< "$found")"
}

show_plan() {
  local name service in_turn=''
  ! needs_replacing || in_turn=$(services_of_app | paste -s -d ' ')
  {
    for name in "${names[@]}"; do
      echo "would rotate $name ($(file_of "$name"))"
    done
    for service in $in_turn; do
      echo "would replace $(containers_of "$service" | wc -l) of $service"
    done
  } | tell_plan secrets "${names[*]}" services "$in_turn"
}

# Each word as a JSON string, with commas between.
json_words() {
  (($# == 0)) || printf '"%s"\n' "$@" | paste -s -d ',' | sed 's/,/, /g'
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  require_running_stack
  check
  if $dry_run; then
    show_plan
    return
  fi
  confirm "Rotate ${names[*]} of the stack $(project_name)?"
  take_lock
  local name
  for name in "${names[@]}"; do
    bring_in "$name"
  done
  if needs_replacing; then
    replace_app
    require_running_stack
  fi
  ! wanted valkey_password || drop_old_in_valkey "$(file_of valkey_password)"
  ! wanted admin_password || settle_admin
  verify
  for name in "${names[@]}"; do
    rm -f "$(file_of "$name").next"
  done
  step "done"
  if $as_json; then
    printf '{"rotated": [%s], "replaced": [%s]}\n' "$(json_words "${names[@]}")" "$(json_words "${replaced[@]}")"
  else
    for name in "${names[@]}"; do
      echo "rotated: $name ($(file_of "$name"))"
    done
  fi
}

main "$@"
