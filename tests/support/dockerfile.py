"""Rules that a Dockerfile has to keep, each with its reason; read without a container engine."""

import fnmatch
import json
import re
from pathlib import Path
from typing import Final, NamedTuple

_COMPILERS: Final = re.compile(r"\b(gcc|g\+\+|clang|make|build-essential|rustc|cargo|[\w.-]+-dev)\b")
_PIP: Final = re.compile(r"(?<!-)\bpip3? [^&|]*install")
_SECRETS: Final = re.compile(r"(SECRET|PASSWORD|TOKEN|_KEY)\b", re.I)


class Instruction(NamedTuple):
    """A step: its name in capitals, its arguments in one line, and its stage, from 0."""

    name: str
    rest: str
    stage: int


def read_instructions(text: str) -> list[Instruction]:
    """Read a Dockerfile, with continued lines put together."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found, stage = [], -1
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        stage += name.upper() == "FROM"
        found.append(Instruction(name.upper(), " ".join(rest.split()), stage))
    return found


def lint(text: str, context: Path, ignored: str = "") -> list[str]:
    """Find what breaks a rule. `context` is the folder that the engine gets, `ignored` its .dockerignore."""
    steps = read_instructions(text)
    last = max(step.stage for step in steps)
    final = [step for step in steps if step.stage == last]
    names = {
        words[2].lower() for step in steps if step.name == "FROM" and len(words := step.rest.split()) == 3
    }
    problems = []
    for step in steps:
        match step.name:
            case "FROM":
                image = step.rest.split()[0]
                tag = image.rpartition("/")[2].partition(":")[2]
                if image.lower() not in names and (not tag or tag == "latest") and "@sha256:" not in image:
                    problems.append(f"{image} has no fixed tag: later builds use another image")
            case "ADD":
                problems.append("ADD fetches and unpacks by itself, unchecked: COPY does not")
            case "RUN" if re.search(r"(curl|wget)[^|]*\|\s*(ba)?sh", step.rest):
                problems.append("a downloaded script is run without a check")
            case "RUN" if "apt-get install" in step.rest and "--no-install-recommends" not in step.rest:
                problems.append("apt-get installs recommended packages: add --no-install-recommends")
            case "RUN" if _PIP.search(step.rest) and "--no-cache-dir" not in step.rest:
                problems.append("pip leaves its cache in the image")
            case "ENV" | "ARG" if _SECRETS.search(step.rest.partition("=")[0]):
                problems.append(
                    f"{step.name} {step.rest.partition('=')[0]}: secrets stay in an image for ever"
                )
            case "COPY":
                problems += _look_at_copy(step.rest, names, context, ignored)
    users = [step.rest for step in final if step.name == "USER"]
    if not users or not re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", users[-1]):
        problems.append("the last stage has no USER that is a number other than 0")
    if any(step.name == "RUN" and _COMPILERS.search(step.rest) for step in final):
        problems.append("the last stage has build tools that an intruder could use")
    for name, why in {
        "HEALTHCHECK": "a server that hangs goes unnoticed",
        "VOLUME": "the registry would be deleted with the container",
        "ENTRYPOINT": "it would have to be named each time",
    }.items():
        if not any(step.name == name for step in final):
            problems.append(f"the last stage has no {name}: {why}")
    for folder in [step.rest for step in final if step.name == "VOLUME"]:
        owner, _, group = users[-1].partition(":") if users else ("", "", "")
        made = f"install -d -o {owner} -g {group or owner} -m 0700 {folder}"
        if not any(step.name == "RUN" and step.rest == made for step in final):
            problems.append(f"{folder} must belong to its user alone: use `RUN {made}`")
    for step in final:
        command = re.sub(r"^(--\S+ )*(CMD )?", "", step.rest) if step.name == "HEALTHCHECK" else step.rest
        if step.name in {"CMD", "ENTRYPOINT", "HEALTHCHECK"} and not _is_list(command):
            problems.append(f"{step.name} starts a shell, which gets the signals instead of the program")
    return problems


def _look_at_copy(rest: str, names: set[str], context: Path, ignored: str) -> list[str]:
    options = re.findall(r"--(\w+)=(\S+)", rest)
    sources = [word for word in rest.split() if not word.startswith("--")][:-1]
    origin = dict(options).get("from")
    if origin is not None:
        return [] if origin.lower() in names else [f"COPY --from={origin}: there is no such stage"]
    missing = [source for source in sources if not (context / source).exists()]
    return [f"COPY {source}: there is no such file" for source in missing] + [
        f"COPY {source}: it is left out by .dockerignore"
        for source in sources
        if source not in missing and is_ignored(source, ignored)
    ]


def is_ignored(path: str, ignored: str) -> bool:
    """Tell whether a .dockerignore excludes a path. The last line that matches counts."""
    verdict = False
    for line in ignored.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        bare = pattern.removeprefix("!").removeprefix("**/").rstrip("/")
        parts = path.split("/")
        above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        candidates = above + (parts if "**/" in pattern else [])
        if any(fnmatch.fnmatchcase(candidate, bare) for candidate in candidates):
            verdict = not pattern.startswith("!")
    return verdict


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False
