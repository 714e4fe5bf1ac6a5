"""JSON that matches a schema, as plain decoding would write it, with fewer forwards. Needs the extra `grammar`."""

import json

import ouroboros

schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"}, "city": {"enum": ["Paris", "London"]}},
    "required": ["name", "city"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # JSON allows blank lines without end, and small models write them
}
decoder = ouroboros.load()
result = decoder.generate("# a person, as JSON\n", max_new_tokens=60, grammar={"json_schema": schema})
print(json.loads(result.text), result.stats.target_forwards, "target forwards for", len(result.token_ids), "tokens")
