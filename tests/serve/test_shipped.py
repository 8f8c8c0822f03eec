"""Third-party files that are shipped are listed in the bill of materials."""

import json
from hashlib import sha256
from importlib.resources import files


def test_the_shipped_viewer_matches_the_bill_of_materials():
    folder = files("isopose.serve") / "static" / "niivue"
    component = json.loads((folder / "component.json").read_text())
    code = (folder / "niivue.js").read_bytes()
    assert component["hashes"] == [{"alg": "SHA-256", "content": sha256(code).hexdigest()}]
    assert f"NiiVue {component['version']} " in (folder / "LICENSE").read_text()
    assert component["purl"].endswith(f"@{component['version']}")
