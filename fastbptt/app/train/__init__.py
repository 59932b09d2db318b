"""The application `fastbptt train`: a recurrent net learns a text, character by character or word by word, or one of the long-memory tasks."""
