"""The page's server, which hands out the page, sample characters and answers to drawings.

An answer is what the initializations make of the drawings.

The page is written for Starlette, not for Gradio. It has four canvases that answer while the pen
still moves, that a keyboard can draw on, and that ask nothing of another host. This is less code
than the settings that would make a general page do so.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from torch import Tensor

from figures.demo.adaptation import N_WAY, adapt
from figures.demo.questions import MAX_STEPS, Question, read, text
from figures.demo.weights import Weights
from reptile_core.evaluation import evaluation_tasks
from reptile_core.tasks import ImagePool, Sampling

STATIC = Path(__file__).parent / "static"
MAX_BYTES = 1_000_000  # of a request: four drawings with as many points as they may have
SHOWN = 6  # sample tasks at a time
MAX_SAMPLES = 1_000_000  # tasks are drawn by number


def application(weights: Weights) -> Starlette:
    """Return the server of the page and of its three answers."""

    def about(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "networks": weights.remarks,
                "origin": weights.origin,
                "most_steps": MAX_STEPS,
                "warning": weights.warning,
            }
        )

    def samples(request: Request) -> JSONResponse:
        first = request.query_params.get("first", "0")
        if not (
            first.isascii() and first.isdigit() and len(first) < 10 and int(first) < MAX_SAMPLES
        ):
            raise HTTPException(
                400, f"first: expected a whole number below {MAX_SAMPLES}, found {first[:60]!r}"
            )
        return JSONResponse(sample_tasks(weights.pool, int(first)))

    async def classify(request: Request) -> JSONResponse:
        try:
            question = read(await body(request))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return JSONResponse(await run_in_threadpool(answer, weights, question))

    return Starlette(
        routes=[
            Route("/about", about),
            Route("/samples", samples),
            Route("/classify", classify, methods=["POST"]),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ]
    )


def answer(weights: Weights, question: Question) -> dict[str, Any]:
    """Return each initialization's losses and probabilities, and the images as it saw them."""
    x = torch.from_numpy(question.images).to(torch.float32)
    found = {
        name: asdict(adapt(start, x[:N_WAY], x[N_WAY], steps=question.steps))
        for name, start in weights.initializations.items()
    }
    return {"networks": found, "seen": [text(image) for image in question.images]}


def sample_tasks(pool: ImagePool, first: int) -> list[dict[str, list[str]]]:
    """Return tasks first … first + SHOWN - 1, of characters that no training saw.

    Each task has an example of each class by one hand, and another one by another hand.
    """
    sampling = Sampling(n_way=N_WAY, shots=1, batch=N_WAY, steps=1)
    tasks = evaluation_tasks(sampling, pool, seed=0, tasks=range(first, first + SHOWN))
    images = pool.images.flatten(0, 1)

    def texts(index: Tensor) -> list[str]:
        return [text(image) for image in images[index].numpy()]

    pairs = zip(tasks.support.index, tasks.test.index, strict=True)
    return [{"examples": texts(examples), "again": texts(again)} for examples, again in pairs]


async def body(request: Request) -> bytes:
    """Return the body of a request, of at most MAX_BYTES.

    Raises HTTPException where more are sent.
    """
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BYTES:
            raise HTTPException(413, f"body: expected at most {MAX_BYTES} bytes, found more")
    return bytes(received)
