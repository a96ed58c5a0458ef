"""The plugin for SGLang against the code of a release, which pip fetches: its registry of hooks and the signatures of
what these stand around here, its layers in processes of sglang_main.py. ctest -C clients -L clients."""
from inside import ROOT, TORCH, enter_package, launch

enter_package(__file__, *TORCH, name="python_torch")

import ast  # noqa: E402
import importlib  # noqa: E402
import importlib.util  # noqa: E402
import inspect  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import types  # noqa: E402
import unittest  # noqa: E402
import zipfile  # noqa: E402

from tenon.adapters import sglang  # noqa: E402

RELEASE = "sglang==0.5.23"
FOLDER = pathlib.Path(sys.prefix).parent / "engines"
HOOKS = "sglang.srt.plugins.hook_registry"


def fetch():
    """The folder of the release's code."""
    code = FOLDER / RELEASE
    if not code.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                        "--timeout", "10", "--retries", "1", "-d", FOLDER, RELEASE], check=True, timeout=600)
        with zipfile.ZipFile(next(FOLDER.glob("sglang-*.whl"))) as wheel:
            wheel.extractall(code)
    return code


def make_packages(name):
    """Empty packages above a module."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(parts[count - 1])).__path__ = []


def load(name, path):
    """The module in a file, under a name whose packages are empty."""
    make_packages(name)
    made = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(made)
    made.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Sglang(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            cls.code = fetch()
        except (OSError, subprocess.SubprocessError, StopIteration) as why:
            raise unittest.SkipTest(f"{RELEASE} did not come from PyPI ({why})")
        os.environ["SGLANG_PLUGINS"] = "tenon"
        cls.registry = load(HOOKS, cls.code / (HOOKS.replace(".", "/") + ".py"))
        sglang.register()

    def functions(self, module):
        tree = ast.parse((self.code / (module.replace(".", "/") + ".py")).read_text())
        return {each.name: each for each in tree.body if isinstance(each, ast.FunctionDef)}

    def test_hooks_take_what_the_functions_take(self):
        targets = self.registry.HookRegistry._hooks
        self.assertEqual(len(targets), 3)
        for target, ((_, hook, _),) in targets.items():
            module, name = target.rsplit(".", 1)
            given = self.functions(module)[name].args
            theirs = [each.arg for each in given.args]
            defaults = [ast.literal_eval(each) for each in given.defaults]
            ours = list(inspect.signature(hook).parameters.values())[1:]
            self.assertEqual([each.name for each in ours], theirs, target)
            self.assertEqual([each.default for each in ours if each.default is not inspect.Parameter.empty], defaults,
                             target)

    def test_hooks_are_put_around(self):
        name = "sglang.srt.layers.layernorm"
        make_packages(name)
        module = sys.modules[name] = types.ModuleType(name)
        module._forward_with_allreduce_fusion = lambda *given: ("own way", len(given))
        hooks = self.registry.HookRegistry
        target = f"{name}._forward_with_allreduce_fusion"
        hooks._apply_target(target, hooks._hooks[target])
        found = module._forward_with_allreduce_fusion(None, None, None, "an addition", None)
        self.assertEqual(found, ("own way", 6))

    def test_layers_give_what_they_gave(self):
        for change in ([], ["quant"]):
            for code, told in launch(2, ROOT / "tests/python/sglang_main.py", self.code, "cpu", *change, timeout=600):
                self.assertTrue(code == 0 and "as SGLang's own\n" in told, told[-4000:])

    def test_groups_are_asked_for_by_their_names(self):
        known = self.functions("sglang.srt.distributed.parallel_state")
        self.assertLessEqual({"get_attn_tp_group", "get_moe_ep_group", "get_moe_tp_group"}, set(known))


if __name__ == "__main__":
    unittest.main()
