# What the scripts share. Sourced, not run; each part says what it holds.
# shellcheck shell=bash

readonly ENGINE_MINIMUM=20.10 COMPOSE_MINIMUM=2.20
readonly PUBLIC_BASE=debian:trixie-slim OWN_BASE=whalefall/base:trixie

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly ENV_FILE=$ROOT/.env BUILD_DIR=$ROOT/.build SECRETS_DIR=$ROOT/.secrets

# shellcheck source=scripts/lib/messages.sh
source "$ROOT/scripts/lib/messages.sh"
# shellcheck source=scripts/lib/settings.sh
source "$ROOT/scripts/lib/settings.sh"
# shellcheck source=scripts/lib/host.sh
source "$ROOT/scripts/lib/host.sh"
# shellcheck source=scripts/lib/engine.sh
source "$ROOT/scripts/lib/engine.sh"
# shellcheck source=scripts/lib/images.sh
source "$ROOT/scripts/lib/images.sh"
# shellcheck source=scripts/lib/secrets.sh
source "$ROOT/scripts/lib/secrets.sh"
# shellcheck source=scripts/lib/stack.sh
source "$ROOT/scripts/lib/stack.sh"
# shellcheck source=scripts/lib/operation.sh
source "$ROOT/scripts/lib/operation.sh"
