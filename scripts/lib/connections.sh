# New connections to nginx are held back while it is replaced: a first packet that gets no answer is sent again after a
# second; one that is refused is a failed request. Sourced; a script that holds must release by a trap.
# shellcheck shell=bash

held_ports=()

# Every port that nginx publishes, over https too.
hold_connections() {
  local inside port
  for inside in 8080 8443; do
    port=$(compose port nginx "$inside" 2> /dev/null) || continue # none that could be held
    held_ports+=("${port##*:}")
  done
  ((${#held_ports[@]})) || return 0
  if ! is_root || ! has iptables; then
    warn "new connections are refused while nginx is replaced: holding them back needs root and iptables"
    held_ports=()
    return
  fi
  change_filter --insert
}

release_connections() {
  ((${#held_ports[@]})) || return 0
  change_filter --delete
  held_ports=()
}

# What a script that was killed still holds back.
release_left_connections() {
  is_root && has iptables || return 0
  local port chain
  for port in "$(setting HTTP_PORT 80)" "$(setting HTTPS_PORT 443)"; do
    for chain in PREROUTING OUTPUT; do
      while dropping "$port" --delete "$chain" 2> /dev/null; do
        step "accepting the connections to port $port again, which an interrupted script had held back"
      done
    done
  done
}

change_filter() {
  local port chain
  for port in "${held_ports[@]}"; do
    for chain in PREROUTING OUTPUT; do
      dropping "$port" "$1" "$chain" || warn "iptables did not $1 the rule for port $port in $chain"
    done
  done
}

# dropping PORT --insert|--delete CHAIN: the rule for new connections to this machine's own port; what it asks of others goes on.
dropping() {
  iptables --wait --table raw "$2" "$3" --protocol tcp --match addrtype --dst-type LOCAL --dport "$1" --syn --jump DROP
}
