"""Validates the documents about images in an OCI layout: CycloneDX against its JSON schema, SPDX by its own tools."""

import json
import pathlib
import sys
import tempfile

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

layout = pathlib.Path(sys.argv[1])
blobs = layout / "blobs" / "sha256"
problems, seen = [], []


def blob(descriptor):
    return blobs / descriptor["digest"].removeprefix("sha256:")


for entry in json.loads((layout / "index.json").read_text())["manifests"]:
    kind = entry.get("artifactType", "")
    if kind not in ("application/spdx+json", "application/vnd.cyclonedx+json"):
        continue
    text = blob(json.loads(blob(entry).read_text())["layers"][0]).read_text()
    seen.append(kind)
    if kind == "application/vnd.cyclonedx+json":
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
        problems += [f"{kind}: {error}"] if error else []
        for component in json.loads(text)["components"]:
            purl = PackageURL.from_string(component["purl"])
            # The canonical form leaves colons as they are in some versions of the library.
            if purl.to_string().replace("%3A", ":") != component["purl"].replace("%3A", ":"):
                problems.append(f"{component['purl']}: canonical is {purl.to_string()}")
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".spdx.json") as file:
            file.write(text)
            file.flush()
            messages = validate_full_spdx_document(parse_file(file.name))
        problems += [f"{kind}: {message.validation_message}" for message in messages]

if sorted(seen) != ["application/spdx+json", "application/vnd.cyclonedx+json"]:
    problems.append(f"found only {seen}")
print("\n".join(problems))
sys.exit(bool(problems))
