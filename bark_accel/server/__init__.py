"""A speech server: OpenAI's API, streaming, a web page. Nothing in the library imports it."""
