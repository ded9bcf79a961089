//! Model files: GGUF and Hugging Face folders.
