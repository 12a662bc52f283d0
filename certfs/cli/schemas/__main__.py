"""Write the schema files into a directory: ``python -m certfs.cli.schemas certfs/cli/schemas``."""

import json
import os
import sys

from certfs.cli.json_forms import FORMS, schema

for name in FORMS:
    with open(os.path.join(sys.argv[1], f"{name}.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(schema(name), indent=2) + "\n")
