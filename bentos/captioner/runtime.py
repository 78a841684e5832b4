"""What stands behind the HTTP API: decode, batch, caption, capture; and the swap of models."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from bentos.captioner.batching import Batched, MicroBatcher
from bentos.captioner.capture import CaptureStore
from bentos.captioner.captured import Bounds, CapturedRequest, UnknownRequest
from bentos.captioner.challenge import Answered, Shadow, is_canarys
from bentos.captioner.engine import Caption, TooManyTokens
from bentos.captioner.images import open_image, orientation, render, to_pixels
from bentos.captioner.models import ServedModel
from bentos.captioner.options import BadOptions, CaptionOptions
from bentos.captioner.request_ids import new_request_id
from bentos.captioner.settings import ServiceSettings
from bentos.captioner.statistics import PictureStatistics, picture_statistics
from bentos.captioner.telemetry import Telemetry
from bentos.captioner.tracing import Tracing

logger = logging.getLogger(__name__)

MOST_CANARY_FAILURES = 3  # batches in a row


@dataclass(frozen=True)
class Answer:
    """A caption with the model that made it; `timings` in seconds."""

    request_id: str
    caption: Caption
    model: ServedModel
    timings: dict[str, float]


@dataclass(frozen=True)
class _Job:
    """A picture as it came, the upright size it has, its pixels at one model's size, their
    statistics if they are captured, and how it is to be captioned."""

    data: bytes
    options: CaptionOptions
    width: int
    height: int
    pixels: np.ndarray
    statistics: PictureStatistics | None
    canary: str | None = None  # the version that answers, if it is not the champion


@dataclass(frozen=True)
class _Seen:
    caption: Caption
    embedding: np.ndarray
    model: ServedModel


class Runtime:
    """A champion answers, and where there is a challenger, it is tried out beside it: as a canary
    that answers a share, or as a shadow. Changes of both take effect between two batches."""

    def __init__(
        self,
        model: ServedModel,
        settings: ServiceSettings,
        telemetry: Telemetry,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.telemetry = telemetry
        self.tracing = tracing
        self._model = model
        self._challenger: ServedModel | None = None
        self._failures = 0  # the canary's batches in a row that were no success
        self._batcher: MicroBatcher[_Job, _Seen] = MicroBatcher(
            self._run,
            key=lambda job: (job.options, job.canary),
            max_batch=model.max_batch,
            max_places=settings.max_queue,
        )
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._shadow: Shadow | None = None
        if settings.shadow is not None:
            self._shadow = Shadow(telemetry, lambda: self._batcher.idle)
        self._captures: CaptureStore | None = None
        if settings.captures is not None:
            self._captures = CaptureStore(
                settings.captures,
                bounds=Bounds(settings.capture_max_bytes, settings.capture_days),
                on_drop=telemetry.capture_drops.inc,
                on_expire=telemetry.captures_expired.inc,
                on_size=telemetry.capture_bytes.set,
            )
        telemetry.model_info.labels(model.name, model.version).set(1)

    @property
    def model(self) -> ServedModel:
        return self._model

    def swap(self, model: ServedModel) -> None:
        """Let `model` answer from the next batch on; what runs now ends with the old one."""
        old, self._model = self._model, model
        self._fit_batches()
        self.telemetry.model_info.labels(old.name, old.version).set(0)
        self.telemetry.model_info.labels(model.name, model.version).set(1)
        self.telemetry.swaps.inc()

    @property
    def challenger(self) -> ServedModel | None:
        return self._challenger

    def challenge(self, model: ServedModel | None) -> None:
        """Try `model` out beside the champion from now on."""
        self._tell_challenger(0)
        self._challenger, self._failures = model, 0
        self._fit_batches()
        self._tell_challenger(1)

    async def dismiss(self) -> ServedModel | None:
        """Take the challenger out; it is given back when its shadow does nothing any more."""
        challenger = self._challenger
        self.challenge(None)
        if self._shadow is not None:
            await self._shadow.rest()
        return challenger

    async def caption(
        self,
        data: bytes,
        options: CaptionOptions,
        *,
        request_id: str | None = None,
        canary_key: bytes | None = None,
    ) -> Answer:
        """Caption an encoded picture. What has the same `canary_key`, by default the picture
        itself, is answered by the same one of champion and canary.

        Raises BadImage, BadOptions, or QueueFull when too much is in work.
        """
        started = time.perf_counter()
        with self._batcher.place():
            loop = asyncio.get_running_loop()
            job = await loop.run_in_executor(
                self._decoders, self._route, data, options, canary_key or data
            )
            decoded = time.perf_counter()
            if self.tracing is not None:
                self.tracing.step("decode", started, decoded)
            done = await (self._by_canary(job) if job.canary else self._batcher.submit(job))
        self.telemetry.queue_wait.observe(done.queue_seconds)
        self.telemetry.batch_size.observe(done.batch_size)
        self.telemetry.caption_tokens.observe(done.result.caption.num_tokens)
        request_id = request_id or new_request_id()
        answered = time.perf_counter()
        self._capture(request_id, job, done.result)
        if self.tracing is not None:
            self._trace(self.tracing, done, decoded)
            self.tracing.step("capture", answered, time.perf_counter())
        self._show(request_id, job, done.result)
        timings = {
            "decode_seconds": decoded - started,
            "queue_seconds": done.queue_seconds,
            "inference_seconds": done.run_seconds,
            "total_seconds": time.perf_counter() - started,
        }
        return Answer(request_id, done.result.caption, done.result.model, timings)

    async def feedback(self, request_id: str, caption: str, client: str | None) -> None:
        """Store a correction. Raises UnknownRequest or CaptureUnavailable."""
        if self._captures is None:
            raise UnknownRequest(request_id)
        await asyncio.to_thread(self._captures.feedback, request_id, caption, client)
        self.telemetry.feedback.inc()

    async def delete_capture(self, request_id: str) -> None:
        """Remove what was kept of a request. Raises UnknownRequest or CaptureUnavailable."""
        if self._captures is None:
            raise UnknownRequest(request_id)
        await asyncio.to_thread(self._captures.delete, request_id)
        self.telemetry.deletions.inc()

    async def close(self) -> None:
        """Answer what is queued, write what was captured, stop the threads."""
        await self._batcher.close()
        await self.dismiss()
        if self._shadow is not None:
            self._shadow.close()
        self._decoders.shutdown()
        if self._captures is not None:
            await asyncio.to_thread(self._captures.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def _run(self, jobs: list[_Job]) -> list[_Seen]:
        """One batch by one model, read once; runs in the engine's thread."""
        canary = self._challenger
        if canary is None or canary.version != jobs[0].canary:
            return self._captioned(self._model, jobs)
        failures, self._failures = self._failures, self._failures + 1
        try:
            seen = self._captioned(canary, jobs)
        except BadOptions:  # the client's doing
            self._failures = failures
            raise
        self._failures = 0
        return seen

    def _captioned(self, model: ServedModel, jobs: list[_Job]) -> list[_Seen]:
        size = model.engine.image_size
        options = jobs[0].options
        generation = options.over(model.generation)
        # A picture prepared just before a swap to a model of another size is decoded anew: what
        # was decoded for a smaller one has lost detail.
        pixels = [
            (
                job if job.pixels.shape[0] == size else self._prepare(job.data, job.options, size)
            ).pixels
            for job in jobs
        ]
        try:
            captions, embeddings = model.engine.run(np.stack(pixels), generation)
        except TooManyTokens as error:
            if options.prompt is None and options.max_new_tokens is None:
                raise  # the model's own card asks for too many
            raise BadOptions(str(error)) from error
        return [_Seen(*pair, model) for pair in zip(captions, embeddings, strict=True)]

    async def _by_canary(self, job: _Job) -> Batched[_Seen]:
        """The canary's answer, or where it fails the champion's, for which it waited as long."""
        started = time.perf_counter()
        [done] = await asyncio.gather(self._batcher.submit(job), return_exceptions=True)
        if isinstance(done, BaseException):
            # Whether options go at all is for the champion to say.
            if not isinstance(done, BadOptions):
                self._blame(job.canary, done)
            tried = time.perf_counter() - started
            done = await self._batcher.submit(replace(job, canary=None))
            return replace(done, queue_seconds=tried + done.queue_seconds)
        if done.result.model is self._challenger:
            self.telemetry.canary_answers.inc()
        return done

    def _blame(self, version: str | None, error: BaseException) -> None:
        """Count what the canary failed at; after too many in a row it is taken out."""
        self.telemetry.canary_failures.inc()
        if self._challenger is None or self._challenger.version != version:
            return
        if self._failures < MOST_CANARY_FAILURES:
            logger.warning("canary version %s failed, the champion answers: %r", version, error)
            return
        logger.error(
            "canary version %s is taken out after %d failures in a row, the last of them: %r",
            *(version, self._failures, error),
        )
        self.challenge(None)

    def _show(self, request_id: str, job: _Job, seen: _Seen) -> None:
        """Let the shadow caption an answered picture too."""
        if self._shadow is None or (challenger := self._challenger) is None:
            return

        def again() -> Caption:
            return self._captioned(challenger, [job])[0].caption

        self._shadow.offer(
            Answered(request_id, seen.model.version, seen.caption, challenger, again)
        )

    def _fit_batches(self) -> None:
        """A batch is no larger than suits whoever may answer."""
        models = [self._model]
        if self._challenger is not None and self.settings.canary:
            models.append(self._challenger)
        self._batcher.max_batch = min(model.max_batch for model in models)

    def _tell_challenger(self, value: int) -> None:
        if self._challenger is not None:
            self.telemetry.challenger_info.labels(
                self._challenger.name, self._challenger.version, self.settings.role
            ).set(value)

    def _route(self, data: bytes, options: CaptionOptions, key: bytes) -> _Job:
        """Decode for the model that shall answer. Raises BadImage."""
        canary = self._challenger if self.settings.canary else None
        if canary is None or not is_canarys(key, canary.version, self.settings.canary_share):
            return self._prepare(data, options, self._model.engine.image_size)
        job = self._prepare(data, options, canary.engine.image_size)
        return replace(job, canary=canary.version)

    def _prepare(self, data: bytes, options: CaptionOptions, size: int) -> _Job:
        """Raises BadImage; whether it does never depends on `size`."""
        sent = open_image(data, max_pixels=self.settings.max_pixels)
        width, height = sent.size
        pixels = to_pixels(render(sent, side=size), size)
        if orientation(sent) >= 5:
            width, height = height, width
        statistics = None if self._captures is None else picture_statistics(pixels)
        return _Job(data, options, width, height, pixels, statistics)

    def _trace(self, tracing: Tracing, done: Batched[_Seen], queued: float) -> None:
        """What happened since a picture was `queued`."""
        begun = queued + done.queue_seconds
        tracing.step("queue", queued, begun)
        attributes: dict[str, str | int] = {
            "captioner.batch_size": done.batch_size,
            "captioner.tokens": done.result.caption.num_tokens,
            "captioner.model.name": done.result.model.name,
            "captioner.model.version": done.result.model.version,
        }
        tracing.step("inference", begun, begun + done.run_seconds, attributes)

    def _capture(self, request_id: str, job: _Job, seen: _Seen) -> None:
        if self._captures is None or job.statistics is None:
            return
        self._captures.put(
            CapturedRequest(
                request_id=request_id,
                time=time.time(),
                model_version=seen.model.version,
                caption=seen.caption.text,
                log_probability=seen.caption.log_probability,
                embedding=seen.embedding,
                width=job.width,
                height=job.height,
                brightness=job.statistics.brightness,
                image=job.data if self.settings.capture_images else None,
                num_tokens=seen.caption.num_tokens,
                sharpness=job.statistics.sharpness,
                image_bytes=len(job.data),
                options=job.options.model_dump(exclude_defaults=True),
            )
        )
