#!/usr/bin/env python3
"""Generate hypercore/proto/*_pb.py and their .pyi stubs from hypercore/proto/*.proto.

Needs grpcio-tools (for protoc's parser) and only at development time: the generated modules are
committed, import nothing but hypercore.wire.codec, and a test keeps them equal to their source.
Types stand in the stubs because a guest should not load annotations. What `hypercore serve` serves
is also described in api_descriptors.json, for reflection and the OpenAPI document.

usage: scripts/protogen.py [--check]
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTO_DIR = Path(__file__).resolve().parent.parent / "hypercore" / "proto"
KINDS = {
    "string": "STRING",
    "bytes": "BYTES",
    "bool": "BOOL",
    "uint32": "UINT",
    "uint64": "UINT",
    "enum": "UINT",
    "int32": "INT",
    "int64": "INT",
    "double": "DOUBLE",
    "message": "MESSAGE",
}
PYTHON_TYPES = {"STRING": "str", "BYTES": "bytes", "BOOL": "bool", "DOUBLE": "float"}
SHADOWING = {"str", "bytes", "bool", "int", "float", "list", "dict"}
SERVED = ("hypercore.proto", "health.proto", "reflection.proto")
Field = descriptor_pb2.FieldDescriptorProto


def parse() -> list[descriptor_pb2.FileDescriptorProto]:
    sources = sorted(str(path) for path in PROTO_DIR.glob("*.proto"))
    with tempfile.NamedTemporaryFile() as out:
        args = ["protoc", f"-I{PROTO_DIR}", f"--descriptor_set_out={out.name}"]
        args += ["--include_source_info", *sources]
        if protoc.main(args) != 0:
            raise SystemExit("protoc failed")
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())
    return list(files.file)


class Module:
    """One generated module and its stub."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto, homes: dict[str, str]) -> None:
        self.file = file
        self.homes = homes
        self.imports: set[str] = set()
        self.body: list[str] = []
        self.stub: list[str] = []

    def reference(self, type_name: str) -> str:
        """The Python expression for a message type such as `.hypercore.types.Any`."""
        home = self.homes[type_name]
        local = flat_name(type_name, PACKAGES[home])
        if home == self.file.name:
            return local
        alias = module_name(home)
        self.imports.add(alias)
        return f"{alias}.{local}"

    def render(self) -> tuple[str, str]:
        """The module's text and its stub's."""
        for enum in self.file.enum_type:
            self.enum(enum, "")
        for message in ordered(self.file):
            self.message(message, "")
        for service in self.file.service:
            self.service(service)
        note = f"Generated from {self.file.name} by scripts/protogen.py; do not edit."
        homes = ", ".join(sorted(self.imports))
        imports = [f"from hypercore.proto import {homes}"] if homes else []
        codec = ["from hypercore.wire.codec import (", *[f"    {n}," for n in CODEC_NAMES], ")"]
        module = [f'"""{note}"""', "", *imports, *codec, *self.body]
        stub = [
            f"# {note}",
            "from typing import ClassVar",
            "",
            *imports,
            "from hypercore.wire.codec import Message",
            *self.stub,
        ]
        return "\n".join(module) + "\n", "\n".join(stub) + "\n"

    def enum(self, enum: descriptor_pb2.EnumDescriptorProto, prefix: str) -> None:
        self.body += ["", "", f"class {prefix}{enum.name}:"]
        self.body += [f"    {value.name} = {value.number}" for value in enum.value]
        self.stub += ["", f"class {prefix}{enum.name}:"]
        self.stub += [f"    {value.name}: ClassVar[int]" for value in enum.value]

    def message(self, message: descriptor_pb2.DescriptorProto, prefix: str) -> None:
        name = prefix + message.name
        entries = {n.name: n for n in message.nested_type if n.options.map_entry}
        for enum in message.enum_type:
            self.enum(enum, name + "_")
        for nested in message.nested_type:
            if nested.name not in entries:
                self.message(nested, name + "_")
        rows, slots, hints = [], [], []
        for field in sorted(message.field, key=lambda f: f.number):
            row, hint = self.field(field, entries)
            if field.name in SHADOWING:
                raise SystemExit(f"{name}.{field.name}: the name hides a Python type in the stub")
            rows.append(row)
            slots.append(f'"{field.name}"')
            hints.append(f"{field.name}: {hint}")
        self.body += ["", "", f"class {name}(Message):"]
        self.stub += ["", f"class {name}(Message):", *[f"    {hint}" for hint in hints]]
        if not rows:
            self.body += ["    __slots__ = ()"]
            self.stub += ["    def __init__(self) -> None: ..."]
            return
        self.stub += ["    def __init__(", "        self,", "        *,"]
        self.stub += [*[f"        {hint} = ...," for hint in hints], "    ) -> None: ..."]
        self.body += ["    __slots__ = (", *[f"        {slot}," for slot in slots], "    )"]
        self.body += ["    FIELDS = (", *[f"        {row}," for row in rows], "    )"]

    def field(
        self, field: Field, entries: dict[str, descriptor_pb2.DescriptorProto]
    ) -> tuple[str, str]:
        """The Field(...) expression and the type of its attribute."""
        label = "SINGULAR"
        value = field
        if field.label == Field.LABEL_REPEATED:
            label = "REPEATED"
            entry = entries.get(field.type_name.rsplit(".", 1)[-1])
            if field.type == Field.TYPE_MESSAGE and entry is not None:
                label = "MAP"
                if entry.field[0].type != Field.TYPE_STRING:
                    raise SystemExit(f"{field.name}: only maps with string keys are supported")
                value = entry.field[1]
        elif (
            field.proto3_optional
            or field.HasField("oneof_index")
            or field.type == Field.TYPE_MESSAGE
        ):
            label = "OPTIONAL"
        proto_type = Field.Type.Name(value.type).removeprefix("TYPE_").lower()
        if proto_type not in KINDS:
            raise SystemExit(f"{field.name}: type {proto_type} is not supported")
        kind = KINDS[proto_type]
        args = [str(field.number), f'"{field.name}"', kind]
        hint = PYTHON_TYPES.get(kind, "int")
        if label != "SINGULAR" or kind == "MESSAGE":
            args.append(label)
        if kind == "MESSAGE":
            hint = self.reference(value.type_name)
            args.append(hint)
        hint = {
            "SINGULAR": hint,
            "OPTIONAL": f"{hint} | None",
            "REPEATED": f"list[{hint}]",
            "MAP": f"dict[str, {hint}]",
        }[label]
        return f"Field({', '.join(args)})", hint

    def service(self, service: descriptor_pb2.ServiceDescriptorProto) -> None:
        package = self.file.package
        self.body += ["", "", f"class {service.name}:", f'    NAME = "{package}.{service.name}"']
        self.body += ["    METHODS = {"]
        self.stub += ["", f"class {service.name}:", "    NAME: ClassVar[str]"]
        self.stub += ["    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]"]
        for method in service.method:
            request = self.reference(method.input_type)
            response = self.reference(method.output_type)
            self.body += [f'        "{method.name}": ({request}, {response}),']
        self.body += ["    }"]


CODEC_NAMES = [
    "BOOL", "BYTES", "DOUBLE", "INT", "MAP", "MESSAGE", "OPTIONAL", "REPEATED", "SINGULAR",
    "STRING", "UINT", "Field", "Message",
]  # fmt: skip
PACKAGES: dict[str, str] = {}


def flat_name(type_name: str, package: str) -> str:
    return type_name.removeprefix(f".{package}.").replace(".", "_")


def module_name(file_name: str) -> str:
    return Path(file_name).stem + "_pb"


def ordered(file: descriptor_pb2.FileDescriptorProto) -> list[descriptor_pb2.DescriptorProto]:
    """Messages so that each comes after those it refers to; recursion is refused."""
    by_name = {f".{file.package}.{m.name}": m for m in file.message_type}
    done: list[descriptor_pb2.DescriptorProto] = []

    def needs(message: descriptor_pb2.DescriptorProto) -> set[str]:
        found = {f.type_name for f in message.field if f.type_name}
        for nested in message.nested_type:
            found |= needs(nested)
        return {top for t in found for top in by_name if t == top or t.startswith(top + ".")}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if by_name[name] in done:
            return
        if name in path:
            raise SystemExit(f"{name} refers to itself")
        for need in sorted(needs(by_name[name]) - {name}):
            visit(need, (*path, name))
        done.append(by_name[name])

    for name in by_name:
        visit(name, ())
    return done


def all_types(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    def walk(message: descriptor_pb2.DescriptorProto, path: str) -> list[str]:
        here = f"{path}.{message.name}"
        return [here, *(name for n in message.nested_type for name in walk(n, here))]

    return [name for m in file.message_type for name in walk(m, f".{file.package}")]


def descriptors(files: list[descriptor_pb2.FileDescriptorProto]) -> str:
    """The served files as JSON: each with its symbols, methods and comments, and as bytes."""
    described = {}
    for file in files:
        comments = {tuple(at.path): comment(at) for at in file.source_code_info.location}
        bare = descriptor_pb2.FileDescriptorProto()
        bare.CopyFrom(file)
        bare.ClearField("source_code_info")
        services = [f"{file.package}.{service.name}" for service in file.service]
        methods = {
            method.name: {
                "client_streams": method.client_streaming,
                "server_streams": method.server_streaming,
                "comment": comments.get((6, s, 2, m), ""),
            }
            for s, service in enumerate(file.service)
            for m, method in enumerate(service.method)
        }
        fields = {
            f"{message.name}.{field.name}": text
            for m, message in enumerate(file.message_type)
            for f, field in enumerate(message.field)
            if (text := comments.get((4, m, 2, f), ""))
        }
        described[file.name] = {
            "symbols": [*services, *(name.removeprefix(".") for name in all_types(file))],
            "services": services,
            "methods": methods,
            "fields": fields,
            "descriptor": base64.b64encode(bare.SerializeToString(deterministic=True)).decode(),
        }
    return json.dumps(described, indent=1) + "\n"


def comment(location: descriptor_pb2.SourceCodeInfo.Location) -> str:
    return " ".join((location.leading_comments or location.trailing_comments).split())


def main() -> None:
    files = parse()
    PACKAGES.update({file.name: file.package for file in files})
    homes = {name: file.name for file in files for name in all_types(file)}
    stale = []
    for file in files:
        module = PROTO_DIR / f"{module_name(file.name)}.py"
        body, stub = Module(file, homes).render()
        for path, text in ((module, body), (module.with_suffix(".pyi"), stub)):
            if path.exists() and path.read_text() == text:
                continue
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if served := [file for file in files if file.name in SERVED]:
        path = PROTO_DIR / "api_descriptors.json"
        text = descriptors(served)
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale:
        print("generated" if "--check" not in sys.argv else "out of date:", *stale)
    if stale and "--check" in sys.argv:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
