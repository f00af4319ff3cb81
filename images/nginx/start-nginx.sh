#!/usr/bin/env bash
# Writes the part of nginx's configuration that depends on the environment, then becomes nginx.
#   start-nginx.sh          run
#   start-nginx.sh --check  check the configuration and exit (at build)
# Reads UPSTREAMS (containers: web and scheduler are in containers of their own; set by the image), SCHEDULER_AUTOSTART
# (ENABLE_SCHEDULER in start-programs.sh's words), TRUSTED_PROXIES, METRICS_ALLOW, and whether a certificate is mounted at /etc/nginx/tls.
set -Eeuo pipefail

readonly GENERATED=/run/whalefall/nginx
readonly CERTIFICATE=/etc/nginx/tls/tls.crt
readonly CERTIFICATE_KEY=/etc/nginx/tls/tls.key

refuse() {
  json-lines nginx <<< "error: $*"
  exit 1
}

# Where web and scheduler are: nginx/upstreams/.
write_upstreams() {
  local scheduler=whalefall_scheduler
  if [[ ${UPSTREAMS-} == containers ]]; then
    echo "include /etc/nginx/upstreams/containers.conf;"
    return
  fi
  # Without a scheduler program its routes go to web, which answers 409 by contract.
  [[ ${SCHEDULER_AUTOSTART:-true} == true ]] || scheduler=whalefall_web
  cat <<EOT
include /etc/nginx/upstreams/one_container.conf;
map "" \$web_upstream {
    default whalefall_web;
}
map "" \$scheduler_upstream {
    default $scheduler;
}
EOT
}

# networks VARIABLE: sets `found` to the addresses and networks that it holds.
networks() {
  local network
  read -ra found <<< "${!1//,/ }"
  for network in ${found[@]+"${found[@]}"}; do
    [[ $network =~ ^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$ ]] ||
      refuse "$1 holds '$network'; accepted: IP addresses or networks such as 10.0.0.0/8, separated by commas"
  done
}

write_trusted_proxies() {
  local -a found proxies
  local proxy
  networks TRUSTED_PROXIES
  proxies=(${found[@]+"${found[@]}"})
  {
    for proxy in ${proxies[@]+"${proxies[@]}"}; do
      echo "set_real_ip_from $proxy;"
    done
    echo "geo \$realip_remote_addr \$from_trusted_proxy {"
    echo "    default 0;"
    for proxy in ${proxies[@]+"${proxies[@]}"}; do
      echo "    $proxy 1;"
    done
    echo "}"
  } > "$GENERATED/trusted_proxies.conf"
}

write_metrics_networks() {
  local -a found
  local network
  networks METRICS_ALLOW
  {
    echo "geo \$from_metrics_network {"
    echo "    default 0;"
    for network in ${found[@]+"${found[@]}"}; do
      echo "    $network 1;"
    done
    echo "}"
  } > "$GENERATED/metrics_networks.conf"
}

write_log() {
  local form=json
  [[ ${LOG_FORMAT-} != [Tt][Ee][Xx][Tt] ]] || form=line
  echo "access_log /dev/stdout $form if=\$is_logged;"
  [[ ${NODE_NAME:-$HOSTNAME} =~ ^[A-Za-z0-9._-]{1,64}$ ]] ||
    refuse "NODE_NAME is '$NODE_NAME'; accepted: 1 to 64 letters, digits, '.', '_' or '-'"
  # shellcheck disable=SC2016 # a variable of nginx
  printf 'map "" $node {\n    default "%s";\n}\n' "${NODE_NAME:-$HOSTNAME}"
}

# With a certificate: the https server, and http leads to it.
write_https_server() {
  : > "$GENERATED/https.conf"
  : > "$GENERATED/redirect.conf"
  [[ -e $CERTIFICATE || -e $CERTIFICATE_KEY ]] || return 0
  [[ -r $CERTIFICATE && -r $CERTIFICATE_KEY ]] ||
    refuse "https needs tls.crt and tls.key in the mounted folder, readable for user $(id -u)"
  local port=${HTTPS_PORT:-443}
  [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || refuse "HTTPS_PORT is '$port'; accepted: a port number from 1 to 65535"
  echo "include /etc/nginx/https_server.conf;" > "$GENERATED/https.conf"
  [[ $port != 443 ]] || port=
  cat > "$GENERATED/redirect.conf" <<EOT
if (\$goes_to_https) {
    return 308 https://\$host${port:+:$port}\$request_uri;
}
EOT
}

main() {
  mkdir -p "$GENERATED"
  write_upstreams > "$GENERATED/upstreams.conf"
  TRUSTED_PROXIES=${TRUSTED_PROXIES-} write_trusted_proxies
  METRICS_ALLOW=${METRICS_ALLOW-} write_metrics_networks
  write_log > "$GENERATED/log.conf"
  write_https_server
  if [[ ${1-} == --check ]]; then
    nginx -t -q -e stderr
    rm -r "$GENERATED"
    return
  fi
  if [[ -s $GENERATED/https.conf ]]; then
    # nginx's own words would be cut off: where it is alone, its container ends with it.
    local problem
    problem=$(nginx -t -q -e stderr 2>&1) || refuse "https cannot be served: ${problem%%$'\n'*}"
    watch-certificate.sh "$$" &
  fi
  # nginx has no format for its error log.
  exec nginx -e stderr -g 'daemon off;' 2> >(exec json-lines nginx)
}

main "$@"
