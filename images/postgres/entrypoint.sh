#!/usr/bin/env bash
# Makes the database at the first start, then becomes the command. (What it says is read by json-lines.)
# The variables are those of the official image:
#   POSTGRES_USER (postgres), POSTGRES_DB (the user's name), POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE, PGDATA
set -Eeuo pipefail

refuse() {
  echo "error: $*" >&2
  exit 1
}

password() {
  if [[ -n ${POSTGRES_PASSWORD-} ]]; then
    printf '%s\n' "$POSTGRES_PASSWORD"
  elif [[ -n ${POSTGRES_PASSWORD_FILE-} ]]; then
    [[ -r $POSTGRES_PASSWORD_FILE ]] || return 1
    cat "$POSTGRES_PASSWORD_FILE"
  fi
}

# In a folder beside, renamed when it is whole: a start that was interrupted leaves nothing that looks like a database.
make_database() {
  local user=${POSTGRES_USER:-postgres} name secret making=$PGDATA.making
  name=${POSTGRES_DB:-$user}
  [[ $user$name =~ ^[A-Za-z0-9_]+$ ]] ||
    refuse "POSTGRES_USER is '$user', POSTGRES_DB is '$name'; accepted: letters, digits and '_'"
  secret=$(password) || secret=
  [[ -n $secret ]] || refuse "no password: give POSTGRES_PASSWORD_FILE the path of a readable file that holds it"
  echo "info: making the database $name" >&2
  rm -rf "$making"
  initdb --pgdata="$making" --username="$user" --pwfile=<(printf '%s\n' "$secret") --auth-local=trust \
    --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --data-checksums > /dev/null
  echo 'host all all all scram-sha-256' >> "$making/pg_hba.conf"
  echo "listen_addresses = '*'" >> "$making/postgresql.conf"
  if [[ $name != postgres ]]; then
    echo "CREATE DATABASE \"$name\"" | postgres --single -D "$making" -c log_checkpoints=off postgres > /dev/null
  fi
  mv "$making" "$PGDATA"
}

main() {
  if [[ ${1-} == postgres && ! -s $PGDATA/PG_VERSION ]]; then
    if [[ -d $PGDATA ]]; then
      rmdir "$PGDATA" 2> /dev/null || refuse "the folder $PGDATA holds something, but no database; it is left as it is"
    fi
    make_database
  fi
  exec "$@"
}

main "$@"
