"""JSON that matches a schema, as plain decoding would write it, with fewer forwards. Needs the extra `grammar`."""

import json

import ouroboros

schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "city": {"enum": ["Paris", "London"]}},
    "required": ["name", "city"],
    "additionalProperties": False,
}
decoder = ouroboros.load()
result = decoder.generate("# a person, as JSON\n", max_new_tokens=60, grammar={"json_schema": schema})
print(json.loads(result.text), result.stats.target_forwards, "target forwards for", len(result.token_ids), "tokens")
