"""The only file that knows Orbax: save, seal, verify, restore; load a parent's parameters.

In: trees of global arrays, each leaf with a NamedSharding; host state as JSON; half of a `Manifest`.
Out: `<folder>/<step>/<item>` written by Orbax, and `<folder>/<step>.manifest.json`, which seals the step.
Left out: what a stage saves and when (`stages/`), which parents fit (`manifest.py`), `fingerprint.py`.

Orbax restores a flipped bit, a half-copied folder and another dtype without a word. So each leaf gets a
fingerprint in jit before the save; the manifest that holds it is written last, atomically; nothing is
restored without its manifest, and nothing is handed out whose fingerprint differs.

On disk an item is a flat dict from leaf path to array: any part of a tree can be asked for by its paths, and
NamedTuples of optimizers need no care. Several processes: all call the same methods; process 0 alone seals.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import dataclasses
import datetime
import json
from typing import Any, NamedTuple

from etils import epath
import jax
import orbax.checkpoint as ocp

from llm.checkpoint_errors import check_processes, disk_errors, quiet
from llm.errors import UserError
from llm.fingerprint import describe, flatten
from llm.identity import digest
from llm.manifest import Manifest, first_line, manifest_path, read, sealed_steps, write
from llm.processes import barrier, first_then_others, is_first


class Restored(NamedTuple):
    step: int
    items: dict[str, Any]
    host: dict
    manifest: Manifest


class Damaged(UserError):
    """A step that cannot be trusted; the message is one line, without the step's name."""


class Checkpoints:
    """The steps of one run. A context manager: leaving it finishes and seals the last save.

    Args:
      folder: holds the steps and their manifests; a bucket's address will do.
      keep: how many of the newest sealed steps stay, beside the best; 2 or more.
      say: gets one line for every save or step that is refused.
      host_gb: of each item's leaves on the host at a time on their way to disk, in 1e9 bytes; 0: all of them. Else the
        leaves must not be donated before `wait`.
    """

    def __init__(self, folder: epath.PathLike, *, keep: int, say: Callable[[str], None] = print, host_gb: int = 0):
        assert keep >= 2, 'with one step there is nothing to fall back to'
        self._folder = epath.Path(folder).resolve()
        self._keep = keep
        self._say = say
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(quiet())
        limits = dict(save_device_host_concurrent_gb=host_gb, is_prioritized_key_fn=lambda path: False)
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        # Weights hardly compress: without it a save takes two thirds of the time, and so does a load.
        handlers.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(
            use_compression=False, **(limits if host_gb else {})))
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(handler_registry=handlers))
        self._stack.callback(self._orbax.close)
        self._sealer = self._stack.enter_context(ThreadPoolExecutor(1, 'seal'))
        self._pending: Future | None = None
        with first_then_others(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob('*.orbax-checkpoint-tmp*'):  # of a process that was killed
                path.rmtree()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def save(self, step: int, items: dict[str, Any], host: dict, manifest: Manifest, *,
             best: bool = False) -> bool:
        """Saves in the background; the arrays may be donated as soon as this returns.

        Args:
          step: not a sealed one; `restore` comes before the first save.
          items: name -> tree, such as params, opt_state, ema, train.
          host: JSON; Python ints and floats come back exactly.
          manifest: without the fields that have defaults, which are filled in here.
          best: this is the best step so far; it stays until another one is and has successors.

        Returns whether the step is saved: False, and one line said, where a number is not finite.
        Raises StorageError if the save before this one failed.
        """
        self.wait()
        assert step not in self.steps(), f'step {step} is sealed, and what is sealed is not written again'
        flat = {item: flatten(tree) for item, tree in items.items()}
        leaves, broken = describe(flat)
        if broken:
            self._say(f'step {step} is not saved: {broken} holds a number that is not finite')
            return False
        host = json.loads(json.dumps(host))
        manifest = dataclasses.replace(
            manifest, step=step, best=best, leaves=leaves, files={'host': digest(host)},
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'))
        cut = ocp.SaveArgs(chunk_byte_size=2**26)  # whole, a leaf is on the host three times while it is written
        args = {item: ocp.args.PyTreeSave(leaves, dict.fromkeys(leaves, cut), 2**28) for item, leaves in flat.items()}
        with disk_errors(self._folder, step):
            self._orbax.save(self._folder / str(step), force=True,  # over an unsealed or refused one, if any
                             args=ocp.args.Composite(host=ocp.args.JsonSave(host), **args))
        self._pending = self._sealer.submit(self._seal, manifest)
        return True

    def restore(self, items: dict[str, Any]) -> Restored | None:
        """The newest sealed step that is sound, as saved, on the meshes of the shardings asked for.

        Args:
          items: name -> tree of arrays or ShapeDtypeStructs, each leaf with a NamedSharding.

        A step that is refused is named by one line, and set aside if an older one is sound. None if no step
        was ever sealed. Raises UserError if steps were sealed but none is sound, rather than starting over.
        """
        self.wait()
        refused: dict[int, UserError] = {}
        for step in reversed(self.steps()):
            try:
                restored = _load(self._folder, step, items, exact=True)
            except UserError as reason:
                self._say(f'{self._folder}@{step} is refused: {reason}')
                refused[step] = reason
                continue
            for newer in refused if is_first() else ():
                path = manifest_path(self._folder, newer)
                path.replace(path.parent / f'{path.name}.refused')
            return restored
        if refused:
            newest, reason = next(iter(refused.items()))
            raise UserError(f'{self._folder} has {len(refused)} sealed steps, none of them sound ({newest}: '
                            f'{reason}); move the folder away to start over')
        return None

    def wait(self) -> None:
        """Until the last save is on disk and sealed, for all processes. Raises StorageError if it failed."""
        if self._finish():
            barrier('sealed')

    def close(self) -> None:
        with self._stack:
            self._finish()  # without the others, who may not come: this process may be on its way out

    def steps(self) -> list[int]:
        """The sealed steps, oldest first."""
        return sealed_steps(self._folder)

    def _finish(self) -> bool:
        """Whether there was a save to wait for."""
        pending, self._pending = self._pending, None
        return pending is not None and pending.result() is None

    def _seal(self, manifest: Manifest) -> None:
        # Not in Orbax's post_finalization_callback: that one runs before the rename to the final folder.
        with disk_errors(self._folder, manifest.step):
            self._orbax.wait_until_finished()
            if is_first():
                write(self._folder, manifest)
                self._retire()

    def _retire(self) -> None:
        """Deletes all but the newest `keep`, and what each of these takes for the best step."""
        steps = self.steps()
        best = [step for step in steps if self._is_best(step)]
        kept = steps[-self._keep:]
        kept += [max((step for step in best if step <= newer), default=newer) for newer in kept]
        for path in self._folder.iterdir():
            if path.name.isdecimal() and int(path.name) < steps[-1] and int(path.name) not in kept:
                manifest_path(self._folder, int(path.name)).unlink(missing_ok=True)
                path.rmtree()  # killed before this, it is an unsealed folder, which the next call deletes

    def _is_best(self, step: int) -> bool:
        with contextlib.suppress(UserError):
            return read(self._folder, step).best
        return False


def load_params(folder: epath.PathLike, step: int | None, abstract: Any) -> tuple[Any, Manifest]:
    """A parent's parameters for a child: the averaged ones (`ema`) where the step has them.

    Args:
      folder: the folder of the steps.
      step: None is the newest sealed one.
      abstract: tree of ShapeDtypeStructs with NamedShardings; a sub-tree (a trunk, say) loads that part only.

    Raises UserError, one line, for a step that is absent, damaged or does not fit; there is no fallback, but
    an older step that is sound is named.
    """
    folder = epath.Path(folder).resolve()
    steps = sealed_steps(folder)
    if not steps:
        raise UserError(f'{folder} has no sealed step; give the folder of a run that has saved one')
    step = steps[-1] if step is None else step
    manifest = read(folder, step)
    item = 'ema' if 'ema' in manifest.leaves else 'params'
    try:
        return _load(folder, step, {item: abstract}, exact=False).items[item], manifest
    except Damaged as reason:
        sound = next((older for older in reversed(steps) if older < step and
                      _is_sound(folder, older, {item: abstract})), None)
        remedy = 'no older step is sound, make it again' if sound is None else f'use {folder}@{sound}'
        raise UserError(f'{folder}@{step} is refused: {reason}; {remedy}') from None


def _load(folder: epath.Path, step: int, items: dict[str, Any], *, exact: bool) -> Restored:
    """Loads and verifies. Raises UserError where the step does not fit, Damaged where it is not as saved."""
    manifest = read(folder, step)
    if manifest.step != step:
        raise Damaged(f'its manifest says step={manifest.step}')
    flat = {item: flatten(tree) for item, tree in items.items()}
    for item, leaves in flat.items():
        _compare(item, manifest.leaves.get(item, {}), leaves, exact=exact)
    args = {item: ocp.args.PyTreeRestore(leaves, ocp.checkpoint_utils.construct_restore_args(leaves),
                                         partial_restore=True)
            for item, leaves in flat.items()}
    try:
        with quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
            loaded = orbax.restore(folder / str(step),
                                   ocp.args.Composite(host=ocp.args.JsonRestore(), **args))
    except Exception as error:  # whatever Orbax, TensorStore or JSON make of a broken file
        check_processes(folder, step, error)
        raise Damaged(f'it cannot be loaded ({first_line(error)})') from error
    described, _ = describe({item: loaded[item] for item in flat})
    for item, leaves in described.items():
        for path, leaf in leaves.items():
            if leaf != manifest.leaves[item][path]:
                raise Damaged(f'{item}/{path} does not have the fingerprint it was saved with')
    if digest(loaded['host']) != manifest.files['host']:
        raise Damaged('its host state does not have the SHA-256 it was saved with')
    trees = {item: jax.tree.unflatten(jax.tree.structure(tree), [loaded[item][path] for path in flat[item]])
             for item, tree in items.items()}
    return Restored(step, trees, loaded['host'], manifest)


def _is_sound(folder: epath.Path, step: int, items: dict[str, Any]) -> bool:
    with contextlib.suppress(UserError):
        return bool(_load(folder, step, items, exact=False))
    return False


def _compare(item: str, saved: dict[str, dict], wanted: dict[str, Any], *, exact: bool) -> None:
    """Before anything is loaded: Orbax casts dtypes silently."""
    for path in sorted(wanted.keys() - saved.keys()):
        raise UserError(f'{item}/{path} is wanted and not in the step; give a step of the same architecture')
    for path in sorted(saved.keys() - wanted.keys() if exact else ()):
        raise UserError(f'{item}/{path} is in the step and not wanted; give a step of the same architecture')
    for path, leaf in wanted.items():
        for key, value in (('shape', list(leaf.shape)), ('dtype', str(leaf.dtype))):
            if saved[path][key] != value:
                raise UserError(f'{item}/{path} has {key} {saved[path][key]}, wanted {value}; '
                                f'give a step of the same architecture')
