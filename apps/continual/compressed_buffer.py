"""`CompressedBuffer`: compressed real images as an Avalanche storage policy, for comparisons with `CondensedBuffer` at equal bytes."""

from collections.abc import Sequence

from apps.continual.augmented import Transform, check_transform, made
from apps.continual.compressed import CompressedMemory
from apps.continual.engine import avalanche
from apps.continual.items import Layout, dataset_of, layout_of
from apps.continual.policies import is_der, refuse_no_replay, refuse_unfit
from apps.continual.protocols import Agent, AvalancheData, Experience, Strategy
from apps.continual.reading import read
from distill.errors import InputError, clipped

_policies = avalanche("avalanche.training.storage_policy")
_utils = avalanche("avalanche.benchmarks.utils")


class CompressedBuffer(_policies.ExemplarsBuffer):  # type: ignore[misc, name-defined]
    """Random real images of each class of each experience, compressed, as many as fit into ``class_bytes``.

    Images are decompressed once after each experience, so that a learner reads tensors.

    Args:
        max_size: what the plugin's ``mem_size`` is; the number of images follows from the bytes.
        codec: a name in `apps.continual.compressed.CODECS`.
        class_bytes: of each class of each experience.
        mean: of the stream's normalisation, per channel.
        std: likewise, the standard deviation.
        seed: of the choice.
        transform: augmentation of an image tensor (C, H, W), applied when items are read for training; "dsa": `Augmented`.
        data_name: name of the data set: digits are not flipped.

    Raises:
        InputError: an argument is wrong, or the strategy stores outputs (DER), which take bytes of their own.
    """

    def __init__(
        self,
        max_size: int,
        codec: str,
        *,
        class_bytes: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        transform: Transform | str | None = None,
        data_name: str = "stream",
    ) -> None:
        super().__init__(max_size)
        check_transform(transform)
        self.data_name = data_name
        self.memory, self.transform = CompressedMemory(codec, class_bytes, mean, std, seed), transform
        self._layout: Layout | None = None
        self._built: AvalancheData | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed images, their sizes and labels."""
        return self.memory.nbytes

    @property
    def buffer(self) -> AvalancheData:
        """The images as an Avalanche dataset with the stream's item layout; empty before the first update."""
        if self._built is None and self._layout is not None:
            groups = []
            for number, group in enumerate(self.memory.groups()):
                then = made(self.transform, self.data_name, self.memory.seed, self.memory.experiences * 2**20 + number)
                groups.append(dataset_of(group, self._layout, then))
            self._built = _utils.concat_datasets(groups)
        found: AvalancheData = super().buffer if self._built is None else self._built
        return found

    @buffer.setter
    def buffer(self, new_buffer: object) -> None:
        raise InputError("a compressed buffer cannot be assigned; it chooses its images itself (post_adapt).")

    def update(self, strategy: Strategy, **_: object) -> None:
        """Called by the plugins of Avalanche 0.6."""
        self.post_adapt(strategy, strategy.experience)

    def post_adapt(self, agent: Agent, exp: Experience) -> None:
        """Compress some of the experience's images. One without items changes nothing."""
        refuse_unfit(agent)
        if is_der(agent):
            raise InputError("DER stores outputs with each item, which a compressed buffer does not; use replay, ER_ACE or GDumb.")
        if not len(exp.dataset):
            return
        images, labels, tasks = read(exp.dataset)
        self.memory.observe(images, labels, task=tasks)
        self._layout, self._built = layout_of(exp), None
        refuse_no_replay(agent, len(self.memory), exp)

    def resize(self, strategy: object, new_size: int) -> None:
        """Raises `InputError` unless ``new_size`` is the current size: bytes are the budget."""
        if new_size != self.max_size:
            raise InputError(f"a compressed buffer cannot become one of {clipped(new_size)} items: its budget is class_bytes.")
