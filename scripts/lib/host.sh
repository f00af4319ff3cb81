# What this host is and what its own configuration says.
# shellcheck shell=bash

is_root() {
  [[ $(id -u) -eq 0 ]]
}

# version_at_least HAVE WANT
version_at_least() {
  [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# Fields of /etc/os-release; empty where it has none.
os_field() {
  local line
  line=$(grep -m 1 "^$1=" /etc/os-release 2> /dev/null) || return 0
  line=${line#*=}
  line=${line#\"}
  printf '%s\n' "${line%\"}"
}

# The archive from which this host takes a release of itself, from its own apt configuration:
#   host_archive RELEASE -> URI, empty when it has none
host_archive() {
  has apt-get || return 0
  # shellcheck disable=SC2016 # apt's own placeholders
  apt-get indextargets --no-release-info --format '$(CREATED_BY) $(RELEASE) $(REPO_URI)' 2> /dev/null |
    awk -v release="$1" '$1 == "Packages" && $2 == release && !found { print $3; found = 1 }'
}

# The Debian archives of this host: "MAIN SECURITY". DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR stand in on a host that
# is not Debian, or that has none.
debian_archives() {
  local main security release
  main=$(setting DEBIAN_MIRROR)
  security=$(setting DEBIAN_SECURITY_MIRROR)
  if [[ $(os_field ID) == debian ]]; then
    release=$(os_field VERSION_CODENAME)
    main=${main:-$(host_archive "$release")}
    security=${security:-$(host_archive "$release-security")}
  fi
  [[ -n $main ]] || return 1
  printf '%s %s\n' "$main" "$security"
}

# Sources (deb822) of a Debian release, from this host's archives; fails where it has none.
debian_sources() {
  local release=$1 archives main security keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  archives=$(debian_archives) || return 1
  read -r main security <<< "$archives"
  printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\nComponents: main\nSigned-By: %s\n' \
    "$main" "$release" "$release" "$keyring"
  if [[ -n $security ]]; then
    printf '\nTypes: deb\nURIs: %s\nSuites: %s-security\nComponents: main\nSigned-By: %s\n' \
      "$security" "$release" "$keyring"
  fi
}

# What this host's apt has set about fetching (proxies, checks), as apt configuration. No hooks, no credentials' files.
apt_fetch_settings() {
  has apt-config || return 0
  apt-config dump 2> /dev/null |
    grep -E '^Acquire::(http|https|ftp|Retries|Check-Valid-Until|Check-Date|ForceIPv4|ForceIPv6|Queue-Mode)(::|[ ])' |
    grep -Ev '^Acquire::https::CA(Info|Path)' | grep -v ' "";$' || return 0
}

# What this host's pip has set about fetching, as one pip configuration: the files in pip's own order, then PIP_...
# variables. Addresses of local folders are left out: the build does not see them.
pip_fetch_settings() {
  local -a files=()
  local file key variable
  for file in /etc/xdg/pip/pip.conf /etc/pip.conf "${HOME:-/root}/.pip/pip.conf" \
    "${XDG_CONFIG_HOME:-${HOME:-/root}/.config}/pip/pip.conf" "${PIP_CONFIG_FILE:-}"; do
    [[ -f $file ]] && files+=("$file")
  done
  {
    [[ ${#files[@]} -eq 0 ]] || cat "${files[@]}"
    echo
    for key in index-url extra-index-url trusted-host proxy timeout retries; do
      variable=${key^^}
      variable=PIP_${variable//-/_}
      [[ -z ${!variable-} ]] || printf '%s = %s\n' "$key" "${!variable}"
    done
  } | awk '
    # Continued lines belong to the key above them.
    /^[ \t]+[^ \t#;]/ { if (key != "") value[key] = value[key] " " $0; next }
    /^[a-z-]+[ \t]*[=:]/ {
      key = $0; sub(/[ \t]*[=:].*/, "", key)
      text = $0; sub(/^[a-z-]+[ \t]*[=:]/, "", text)
      value[key] = text
      next
    }
    { key = "" }
    END {
      print "[global]"
      split("index-url extra-index-url trusted-host proxy timeout retries", wanted, " ")
      for (i = 1; i in wanted; i++) {
        count = split(value[wanted[i]], words, " ")
        line = ""
        for (j = 1; j <= count; j++) if (words[j] !~ /^(file:|\/)/) line = line " " words[j]
        if (line != "") print wanted[i] " =" line
      }
    }'
}

# The certificates that this host trusts.
ca_bundle() {
  local file
  for file in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
    if [[ -s $file ]]; then
      cat "$file"
      return
    fi
  done
}

# No listening socket on the port, over IPv4 or IPv6. Read from the kernel: a bare system has neither ss nor python.
port_is_free() {
  local hex
  hex=$(printf '%04X' "$((10#$1))")
  ! awk -v port=":$hex" '$4 == "0A" && substr($2, length($2) - 4) == port { found = 1 } END { exit !found }' \
    /proc/net/tcp /proc/net/tcp6 2> /dev/null
}
