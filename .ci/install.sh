# What the scripts here share: installing Debian packages that are missing. To be sourced.

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# as_root COMMAND...: as root, through sudo if that asks no questions.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        say "cannot run '$*': neither root nor passwordless sudo"
        return 1
    fi
}

# install PACKAGE...: false, with a reason, where that is not possible.
install() {
    if ! command -v apt-get >/dev/null; then
        say "no apt-get: install the equivalent of $* yourself"
        return 1
    fi
    say "installing $*"
    as_root apt-get -qq update >&2 || say "the package lists could not be refreshed"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >&2
}

# has_vulkan: whether any Vulkan driver has registered itself.
has_vulkan() {
    compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null ||
        [ -n "${VK_ICD_FILENAMES:-}${VK_DRIVER_FILES:-}" ]
}
