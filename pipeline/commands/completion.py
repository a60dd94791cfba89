"""`coda completion`."""

from __future__ import annotations

from typing import Annotated, Literal

from ..cli.arguments import COMMON, Help, arguments_of
from . import COMMANDS, GROUPS, load_command

_SCRIPT = """\
_coda() {
  local flags words current="${COMP_WORDS[COMP_CWORD]}"
  case "${COMP_WORDS[*]:1:COMP_CWORD-1} " in
%s
  esac
  if [[ $current == -* ]]; then words="$flags"; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _coda coda"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"  # zsh then runs scripts for bash


def completion(shell: Annotated[Literal["bash", "zsh"], Help("The shell.")] = "bash") -> str:
    """Print a script that completes commands, flags and the words that a flag takes; elsewhere, file names.

    A line `eval "$(coda completion bash)"` in ~/.bashrc, or `eval "$(coda completion zsh)"` in ~/.zshrc, runs it in
    every new shell.

    Examples:
        coda completion bash
        coda completion zsh
    """
    words = {"": list(dict.fromkeys(name.split()[0] for name in COMMANDS))}
    words |= {f"{group} ": [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")] for group in GROUPS}
    cases = [f'    "{begun or " "}") words="{" ".join(members)}" ;;' for begun, members in words.items()]
    for name in COMMANDS:
        flags = [argument for argument in [*arguments_of(load_command(name)), *COMMON] if not argument.positional]
        for flag in flags:
            if flag.kind.choices:
                cases.append(f'    "{name} "*"{flag.label} ") words="{" ".join(map(str, flag.kind.choices))}" ;;')
        spelled = (f"--no-{flag.word}" if flag.default is True else flag.label for flag in flags)
        cases.append(f'    "{name} "*) flags="{" ".join(spelled)}" ;;')
    return (_ZSH if shell == "zsh" else "") + _SCRIPT % "\n".join(cases)
