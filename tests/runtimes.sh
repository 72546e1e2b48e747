#!/usr/bin/env bash
# Unpacks newer releases of the container runtimes beside the machine's own; nothing is installed onto the system.
#
#   tests/runtimes.sh            brings every suite that is not there yet
#   tests/runtimes.sh --list     prints the programs that are there, one `SUITE/PROGRAM` a line
#
# The packages come from the mirror that apt uses on this machine, under that mirror's signature; only the suite is
# another one. Each suite lies in $HEARTH_FIXTURES/runtimes/SUITE (default /var/tmp/hearth-fixtures):
#
#   bin/        the programs, changed to start with the suite's own loader and libraries
#   helpers/    programs that podman and buildah start themselves
#   lib/        the loader and the libraries
#   complete    written last: what was asked for and which versions came
#
# A suite that cannot be had is reported and left out: the exit code is 1 and the tests that need it are skipped.
set -uo pipefail

# suite:packages. CRI-O and nerdctl are in no suite of Debian (November 2026).
suites=(
    "trixie:containerd"
    "sid:containerd podman buildah skopeo docker.io netavark"
)
# Seconds for one suite: 170 MB over a slow line.
limit=600

fixtures=${HEARTH_FIXTURES:-/var/tmp/hearth-fixtures}/runtimes
say() { printf '%s\n' "$*"; }
fail() { say "$*"; exit 1; }

# The machine's own sources: prints `URL [options]` of the first one for Debian's main component. Needs no lists.
own_mirror() {
    local codename site release component entry file options='' keyring
    codename=$(. /etc/os-release && [ "$ID" = debian ] && printf '%s' "${VERSION_CODENAME:-sid}") || return
    while IFS='|' read -r site release component entry; do
        case $release in "$codename" | stable | oldstable | testing | unstable | sid) ;; *) continue ;; esac
        [ "$component" = main ] || continue
        file=${entry%:*}
        # What apt was told to trust for this machine holds here too.
        grep -qiE '(^|[[ ])trusted(=|: *)yes' "$file" && options='trusted=yes'
        keyring=$(grep -ioE '(^|[[ ])signed-by(=|: *)/[^] ]+' "$file" | grep -oE '/.*' | head -n 1)
        [ -n "$keyring" ] && options+=" signed-by=$keyring"
        printf '%s %s\n' "$site" "${options:+[$options]}"
        return
    done < <(apt-get indextargets --format '$(SITE)|$(RELEASE)|$(COMPONENT)|$(SOURCESENTRY)' 'Created-By: Packages')
    return 1
}

# The libraries that the packages need, and those that these need, without the programs and services that come along.
libraries_of() {
    local wanted=("$@") found=() new
    while [ ${#wanted[@]} -gt 0 ]; do
        mapfile -t new < <(apt-cache depends --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks \
            --no-replaces --no-enhances -o APT::Cache::ShowOnlyFirstOr=true "${wanted[@]}" \
            | sed -n 's/^ *Depends: \(lib[a-z0-9.+-]*\).*/\1/p' | sort -u \
            | { [ ${#found[@]} = 0 ] && cat || grep -vxF "$(printf '%s\n' "${found[@]}")"; })
        found+=("${new[@]}")
        wanted=("${new[@]}")
    done
    printf '%s\n' "${found[@]}"
}

# Writes the configuration of an apt with sources, lists and cache of its own, which knows no installed package.
own_apt() {
    local directory=$1 source=$2
    mkdir -p "$directory"/{lists/partial,cache/archives/partial} || return
    printf '%s\n' "$source" > "$directory/sources.list"
    cat > "$directory/apt.conf" << END
Dir::Etc::SourceList "$directory/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$directory/lists";
Dir::State::status "/dev/null";
Dir::Cache "$directory/cache";
Dir::Cache::pkgcache "pkgcache.bin";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
END
}

# The program that changes ELF headers, of the machine's own release: its libraries are here already.
bring_patchelf() {
    command -v patchelf > /dev/null && { command -v patchelf; return; }
    mkdir -p "$1" && cd "$1" || return
    apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 download patchelf > download.log 2>&1 \
        || { apt-get -q update && apt-get -q download patchelf; } > download.log 2>&1 || { cat download.log >&2; return 1; }
    dpkg -x patchelf_*.deb . && printf '%s\n' "$1/usr/bin/patchelf"
}

# Moves programs and libraries of an unpacked suite to their places below `$2`, which will be `$3` in the end.
arrange() {
    local root=$1 target=$2 final=$3 patchelf=$4 loader program
    mkdir -p "$target"/{bin,helpers,lib} || return
    find "$root"/usr/lib/*-linux-gnu -maxdepth 1 -name '*.so*' -exec cp -a -t "$target/lib" {} + || return
    find "$root" -type f \( -path '*/usr/bin/*' -o -path '*/usr/sbin/*' \) -exec cp -a -t "$target/bin" {} +
    find "$root" -type f -path '*/usr/lib/podman/*' -exec cp -a -t "$target/helpers" {} +
    loader=$(find "$target/lib" -type f -name 'ld*.so.*' | head -n 1)
    [ -n "$loader" ] || { say 'there is no loader among the libraries'; return 1; }
    for program in "$target"/bin/* "$target"/helpers/*; do
        # Programs that start themselves again (`/proc/self/exe`) would start the loader if a script called it for them;
        # so the loader is written into the program. A statically linked one has none to be replaced.
        "$patchelf" --print-interpreter "$program" > /dev/null 2>&1 || continue
        "$loader" --library-path "$target/lib" --list "$program" > /dev/null || return
        "$patchelf" --set-interpreter "$final/lib/${loader##*/}" --force-rpath --set-rpath "$final/lib" "$program" || return
    done
}

# bring SUITE PACKAGES: run in a process of its own, which a time limit ends.
bring() {
    local suite=$1 packages=$2 mirror site options target=$fixtures/$1 work
    local asked="$packages for $target by $(cksum < "$0")"
    [ "$(head -n 1 "$target/complete" 2> /dev/null)" = "$asked" ] && return
    command -v apt-get > /dev/null && command -v dpkg > /dev/null || fail "$suite: this machine has no apt-get"
    mirror=$(own_mirror) || fail "$suite: no Debian mirror is among this machine's package sources"
    read -r site options <<< "$mirror"
    say "unpacking $packages of $suite into $target"
    work=$fixtures/.$suite.partial
    rm -rf "$work" && mkdir -p "$work/debs" || return
    own_apt "$work/apt" "deb $options $site $suite main" || return
    local patchelf
    patchelf=$(bring_patchelf "$work/patchelf") || fail "$suite: patchelf cannot be downloaded"
    export APT_CONFIG=$work/apt/apt.conf
    apt-get -q update > "$work/log" 2>&1 || { cat "$work/log"; return 1; }
    local libraries
    # shellcheck disable=SC2086 # a list of words
    libraries=$(libraries_of $packages)
    # shellcheck disable=SC2086
    (cd "$work/debs" && apt-get -q download $packages $libraries) > "$work/log" 2>&1 || { tail -n 20 "$work/log"; return 1; }
    local package
    for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/root" || return; done
    arrange "$work/root" "$work/new" "$target" "$patchelf" || return
    { printf '%s\n' "$asked"; cd "$work/debs" && printf '%s\n' *.deb; } > "$work/new/complete" || return
    if [ -e "$target" ]; then mv -T "$target" "$work/old" || return; fi
    mv -T "$work/new" "$target" && rm -rf "$work"
}

case ${1:-} in
    '') ;;
    --list) for program in "$fixtures"/*/bin/*; do [ -x "$program" ] && say "${program#"$fixtures"/}"; done | sed 's|/bin/|/|'; exit 0 ;;
    --bring) bring "$2" "$3"; exit ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown option \`$1\`; see \`tests/runtimes.sh --help\`" ;;
esac

mkdir -p "$fixtures" || exit
status=0
for entry in "${suites[@]}"; do
    # Two runs at a time make it once: the second waits, at most as long as the first may take.
    if ! flock --timeout "$limit" "$fixtures/.${entry%%:*}.lock" \
        timeout --kill-after=10 "$limit" bash "$0" --bring "${entry%%:*}" "${entry#*:}" < /dev/null; then
        say "${entry%%:*} cannot be had: the tests that need ${entry#*:} of it are skipped"
        status=1
    fi
done
exit $status
