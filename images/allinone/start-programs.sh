#!/usr/bin/env bash
# Becomes supervisord, which runs the programs of the one container.
set -Eeuo pipefail

refuse() {
  json-lines entrypoint <<< "error: $*"
  exit 1
}

main() {
  # The same words as in app/settings.py; supervisord's own idea of true is wider.
  local enabled
  read -r enabled <<< "${ENABLE_SCHEDULER-true}" # without the blanks around it
  case $enabled in
    [Tt][Rr][Uu][Ee] | 1 | [Yy][Ee][Ss]) export SCHEDULER_AUTOSTART=true ;;
    *) export SCHEDULER_AUTOSTART=false ;;
  esac

  # gunicorn-scheduler.conf.py adds 10 s to the drain; 5 more for the master to end.
  local drain=${DRAIN_SECONDS:-30}
  [[ $drain =~ ^[0-9]{1,4}(\.[0-9]+)?$ ]] || refuse "DRAIN_SECONDS is '$drain'; accepted: a number of seconds from 0 to 3600"
  export SCHEDULER_STOP_SECONDS=$((10#${drain%.*} + 15))

  exec /usr/bin/python3 /etc/supervisor/supervise.py --configuration /etc/supervisor/supervisord.conf
}

main "$@"
