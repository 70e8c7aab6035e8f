# bash completion for tspool(1)

_tspool() {
    local word=$2 before=$3 command=${COMP_WORDS[1]} options
    local commands='copy ls verify diff latest publish gc doctor bench tune'
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$commands help --help --version" -- "$word")
        return
    fi
    case $before in
        --io)             mapfile -t COMPREPLY < <(compgen -W 'auto uring threads' -- "$word"); return ;;
        --rw)             mapfile -t COMPREPLY < <(compgen -W 'save load write read' -- "$word"); return ;;
        --ioengine)       mapfile -t COMPREPLY < <(compgen -W 'auto uring threads buffered' -- "$word"); return ;;
        --staging)        mapfile -t COMPREPLY < <(compgen -W 'now background' -- "$word"); return ;;
        --output-format)  mapfile -t COMPREPLY < <(compgen -W 'normal json json+ terse' -- "$word"); return ;;
        --shape)
            mapfile -t COMPREPLY < <(compgen -W 'gpt2-124m gpt2-xl llama3-8b llama3-70b llama3-405b mlperf-1t' -- "$word")
            return ;;
        --directory)      mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
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
        bench)  options='--name --output --output-format --json --eta --compare --rounds --parse-only --rw --shape --ranks
                --rank --tp --pp --dp --scale --numjobs --interval --train_ms --staging --directory --filename
                --size --bs --iodepth --iodepth_batch --ioengine --direct --fsync --end_fsync --rate --thinktime
                --loops --runtime --time_based --ramp_time --stonewall --new_group --group_reporting --invalidate
                --arena --staging_threads --hash_threads --settings --prime --seed --keep --writer --destroy_data_on
                --help' ;;
        tune)   options='--size --rounds --output --writer --json --quiet --help' ;;
        gc)     options='--keep --dry-run --json --quiet --help' ;;
        help)   mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$word"); return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
        return
    fi
    compopt -o filenames 2>/dev/null
    case $command in
        latest | publish | gc | doctor | tune) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        bench)                          mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        *)                              mapfile -t COMPREPLY < <(compgen -d -- "$word"; compgen -f -X '!*.safetensors' -- "$word") ;;
    esac
}
complete -F _tspool tspool
