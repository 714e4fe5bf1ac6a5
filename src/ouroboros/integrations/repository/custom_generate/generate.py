"""This folder works as a ``custom_generate`` repository: ``model.generate(…, custom_generate=PATH,
trust_remote_code=True)``. It hands everything to the callable, and takes ``streamer`` by its usual name."""

import ouroboros


def generate(model, streamer=None, **arguments):  # type: ignore[no-untyped-def]
    if streamer is not None:
        inputs = arguments.get("input_ids", arguments.get("inputs"))
        if inputs is not None:
            streamer.put(inputs.cpu())
    return model.generate(custom_generate=ouroboros.custom_generate, token_streamer=streamer, **arguments)
