# bash completion for tspool(1)

_tspool() {
    local word=$2 before=$3 command=${COMP_WORDS[1]} options
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W 'copy ls verify diff latest publish gc doctor help --help --version' -- "$word")
        return
    fi
    case $before in
        --io)             mapfile -t COMPREPLY < <(compgen -W 'auto uring threads' -- "$word"); return ;;
        --arena | --rate) mapfile -t COMPREPLY < <(compgen -W '64M 256M 1G' -- "$word"); return ;;
        --keep | -k | --wait | -w | --save-id | --world-size) return ;;
    esac
    case $command in
        copy)   options='--replace --io --buffered --arena --rate --writer --json --quiet --help' ;;
        ls | doctor) options='--json --help' ;;
        latest) options='--wait --json --help' ;;
        verify) options='--json --quiet --help' ;;
        diff)   options='--json --quiet --exit-code --help' ;;
        publish) options='--save-id --world-size --json --help' ;;
        gc)     options='--keep --dry-run --json --quiet --help' ;;
        help)   mapfile -t COMPREPLY < <(compgen -W 'copy ls verify diff latest publish gc doctor' -- "$word"); return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
        return
    fi
    compopt -o filenames 2>/dev/null
    case $command in
        latest | publish | gc | doctor) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        *)                              mapfile -t COMPREPLY < <(compgen -d -- "$word"; compgen -f -X '!*.safetensors' -- "$word") ;;
    esac
}
complete -F _tspool tspool
