"""The build hook of compiled wheels: mypyc compiles the modules that `pyproject.toml` lists.

It is off unless HATCH_BUILD_HOOK_ENABLE_CUSTOM is set. It builds in a temporary folder: nothing in the source
tree changes, so that an editable install stays interpreted.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = "brewos_relay"
_SETUP = """
import json, sys
from setuptools import setup
from mypyc.build import mypycify

paths = json.loads(sys.argv.pop())
extensions = mypycify(paths, group_name="{package}.compiled", opt_level="3", debug_level="0")
setup(name="compiled", ext_modules=extensions)
"""


class CompiledModules(BuildHookInterface[Any]):
    """Adds compiled modules to a wheel, beside their source."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the modules before the wheel is written. An editable install has none."""
        if version == "editable":
            return
        folder = Path(tempfile.mkdtemp(prefix="brewos-relay-compiled-"))
        self._folder = folder
        shutil.copytree(
            Path(self.root, "src", _PACKAGE), folder / _PACKAGE, ignore=shutil.ignore_patterns("*.so")
        )
        (folder / "setup.py").write_text(_SETUP.format(package=_PACKAGE))
        paths = [f"{name.replace('.', '/')}.py" for name in self.config["modules"]]
        # Without a configuration: that of the project checks the tests as well, and more strictly.
        arguments = ["--config-file=", "--python-version", "3.11", *paths]
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", json.dumps(arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the modules cannot be compiled:\n{done.stdout}{done.stderr}")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for path in Path(folder, _PACKAGE).rglob(f"*{suffix}"):
            build_data["force_include"][str(path)] = str(path.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        if version != "editable":
            shutil.rmtree(self._folder)
