"""This folder works as a ``custom_generate`` repository: ``model.generate(…, custom_generate=PATH,
trust_remote_code=True)``. It hands everything to the callable, and takes ``streamer``, and ``assistant_model`` for the
draft model, by their usual names."""

import ouroboros


def generate(model, streamer=None, assistant_model=None, **arguments):  # type: ignore[no-untyped-def]
    if assistant_model is not None:
        if arguments.get("draft_model") is not None:
            raise ouroboros.InputError("assistant_model and draft_model are the same; give one of them")
        arguments["draft_model"] = assistant_model
    if streamer is not None:
        inputs = arguments.get("input_ids", arguments.get("inputs"))
        if inputs is not None:
            streamer.put(inputs.cpu())
    return model.generate(custom_generate=ouroboros.custom_generate, token_streamer=streamer, **arguments)
