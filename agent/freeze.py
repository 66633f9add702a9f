"""Write a C header with frozen modules: freeze.py OUT NAME... (NAME/ is a package of ours).

Runs on the interpreter that the agent is linked from, since byte code belongs to one version.
Our packages are empty but for `__path__ = None`, by which their compiled modules are looked up
among the built-in ones.
"""

import importlib.util
import marshal
import sys


def code_of(name):
    if name.endswith("/"):
        return name[:-1], compile("__path__ = None", f"<{name}>", "exec"), True
    spec = importlib.util.find_spec(name)
    with open(spec.origin, "rb") as source:
        text = source.read()
    code = compile(text, f"<frozen {name}>", "exec", optimize=2, dont_inherit=True)
    return name, code, spec.submodule_search_locations is not None


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
