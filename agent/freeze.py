"""Write a C header with frozen modules: freeze.py OUT NAME[=SOURCE]... (NAME/: a package of ours).

Runs on the interpreter that the agent is linked from, since byte code belongs to one version.
Our packages are empty but for `__path__ = None`, by which their compiled modules are looked up
among the built-in ones.
"""

import marshal
import os
import sys

STDLIB = f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"


def code_of(argument):
    """(name, code, whether it is a package) of one argument."""
    if argument.endswith("/"):
        name = argument[:-1]
        return name, compile("__path__ = None", f"<{name}>", "exec"), True
    name, _, source_name = argument.partition("=")
    path = f"{STDLIB}/{(source_name or name).replace('.', '/')}"
    package = os.path.isdir(path)
    with open(path + ("/__init__.py" if package else ".py"), "rb") as source:
        text = source.read()
    return name, compile(text, f"<frozen {name}>", "exec", optimize=2, dont_inherit=True), package


def main():
    arrays, rows = [], []
    for argument in sys.argv[2:]:
        name, code, package = code_of(argument)
        symbol = "frozen_" + name.replace(".", "_")
        data = marshal.dumps(code)
        arrays.append(f"static const unsigned char {symbol}[] = {{{','.join(map(str, data))}}};\n")
        rows.append(
            f'    {{.name = "{name}", .code = {symbol}, .size = {len(data)}, '
            f".is_package = {int(package)}}},\n"
        )
    with open(sys.argv[1], "w") as out:
        out.writelines(arrays)
        out.write("static const struct _frozen frozen_modules[] = {\n")
        out.writelines(rows)
        out.write("    {0},\n};\n")


if __name__ == "__main__":
    main()
