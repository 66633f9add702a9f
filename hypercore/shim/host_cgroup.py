"""config.json's linux.cgroupsPath → where in the host's cgroups a microVM's processes are."""

from hypercore.errors import InvalidArgument


def path_of(cgroups_path: str) -> str:
    """The path below each tree's root; empty for none. `slice:prefix:name` is systemd's form.

    Raises:
        InvalidArgument: it leads out of the tree.
    """
    parts = cgroups_path.split(":")
    if len(parts) == 3 and "/" not in cgroups_path:
        slice_name, prefix, name = parts
        unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope".lstrip("-")
        return "/".join([*_slices(slice_name or "system.slice"), unit])
    levels = [level for level in cgroups_path.split("/") if level not in ("", ".")]
    if ".." in levels or "\n" in cgroups_path:
        raise InvalidArgument(
            f"config.json: linux.cgroupsPath {cgroups_path!r}: no path in cgroups"
        )
    return "/".join(levels)


def _slices(name: str) -> list[str]:
    """`a-b.slice` lies in `a.slice`; `-.slice` is the root."""
    words = name.removesuffix(".slice").split("-")
    if not all(words):
        return []
    return ["-".join(words[: end + 1]) + ".slice" for end in range(len(words))]
