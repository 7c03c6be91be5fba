# shellcheck shell=bash
# Flags of the launch scripts: declared once, given on the command line or in the environment, listed by --help; and
# --dry-run, under which `run` prints a command instead of running it. Sourced, not run:
#
#   summary 'What the script does, and an example.'
#   verb create 'what it does'                    # if there are any, the first word must be one: $chosen_verb
#   flag zone '' 'what it means'                  # --zone Z, or SCMBERT_ZONE=Z: ${flags[zone]}; '' is the default
#   flag spot false 'what it means'               # a default of false makes a switch: --spot
#   read_flags "$@"                               # words after -- are in "${words[@]}"
#   need name zone                                # exits with 2 where one is empty
#   run gcloud ... --zone="${flags[zone]}"

declare -A flags=() verb_help=() flag_help=()
declare -a verb_names=() flag_names=() words=()
dry_run=false chosen_verb='' script_summary=''
script_name=$(basename "$0")

summary() { script_summary=$1; }
verb() { verb_names+=("$1"); verb_help[$1]=$2; }

flag() {
    local variable=${1//-/_}
    variable=SCMBERT_${variable^^}
    flag_names+=("$1")
    flag_help[$1]="$3${2:+ [$2]}"
    [ "$2" != false ] || switch_names+=" $1 "
    flags[$1]=${!variable:-$2}
}
switch_names=''
is_switch() { [[ $switch_names == *" $1 "* ]]; }

usage() {
    printf '%s\n\nusage: %s%s [--FLAG VALUE]... [--dry-run]\n' \
        "$script_summary" "$script_name" "${verb_names:+ VERB}"
    local name
    for name in "${verb_names[@]}"; do printf '  %-22s %s\n' "$name" "${verb_help[$name]}"; done
    printf '\nEvery flag can also be set in the environment: --run-dir is SCMBERT_RUN_DIR.\n'
    for name in "${flag_names[@]}"; do printf '  --%-20s %s\n' "$name" "${flag_help[$name]}"; done
    printf '  --%-20s %s\n' dry-run 'print what would be run, and run nothing'
}

# Exits; what a script was asked cannot be done as asked (2), or a tool failed (1, or that tool's exit code).
refuse() { printf '%s: %s (--help lists all flags)\n' "$script_name" "$1" >&2; exit 2; }
die() { printf '%s: %s\n' "$script_name" "$1" >&2; exit "${2:-1}"; }
say() { printf '%s: %s\n' "$script_name" "$1" >&2; }

read_flags() {
    local name known
    known=" ${flag_names[*]} "
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --dry-run) dry_run=true ;;
            --)
                shift
                # shellcheck disable=SC2034 # for the script that sources this
                words=("$@")
                break
                ;;
            --*)
                name=${1#--} name=${name%%=*}
                [[ $known == *" $name "* ]] || refuse "--$name: no such flag"
                if [[ $1 == *=* ]]; then flags[$name]=${1#*=}
                elif is_switch "$name"; then flags[$name]=true
                elif [ $# -gt 1 ]; then flags[$name]=$2; shift
                else refuse "--$name: a value is missing"; fi
                ;;
            *)
                [[ " ${verb_names[*]} " == *" $1 "* ]] || refuse "$1: no such verb; there are: ${verb_names[*]:-none}"
                [ -z "$chosen_verb" ] || refuse "$1: one verb at a time"
                chosen_verb=$1
                ;;
        esac
        shift
    done
    for name in $switch_names; do
        [[ ${flags[$name]} =~ ^(true|false)$ ]] || refuse "--$name ${flags[$name]}: expected true or false"
    done
    if [ "${#verb_names[@]}" -gt 0 ] && [ -z "$chosen_verb" ]; then refuse "a verb is missing: ${verb_names[*]}"; fi
}

need() {
    local name variable
    for name in "$@"; do
        variable=${name//-/_}
        [ -n "${flags[$name]}" ] || refuse "--$name is missing (or SCMBERT_${variable^^})"
    done
}

need_number() {
    local name
    for name in "$@"; do
        [[ ${flags[$name]} =~ ^[0-9]+$ ]] || refuse "--$name ${flags[$name]}: expected a whole number"
    done
}

# The words as one would type them.
quoted() {
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
        line+="${line:+ }$word"
    done
    printf '%s\n' "$line"
}

run() {
    if $dry_run; then quoted "$@"; return; fi
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@" || die "failed with exit code $?: $(quoted "$@")"
}
