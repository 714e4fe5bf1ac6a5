#!/bin/sh
# The server by hand: its health, its models, a completion, and a stream. The key is read from the environment.
set -eu
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
ask() { curl --fail-with-body --silent --show-error --no-buffer -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" "$@"; echo; }

ask "${url%/v1}/health"
ask "$url/models"
ask "$url/completions" --json '{"prompt": "def add(a, b):", "max_tokens": 24, "temperature": 0}'
ask "$url/chat/completions" --json '{
  "messages": [{"role": "user", "content": "def add(a, b):"}],
  "max_tokens": 24, "temperature": 0, "stream": true, "stream_options": {"include_usage": true}
}'
