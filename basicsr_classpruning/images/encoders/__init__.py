"""One encoder a format. Each writes a picture to a stream from strips of rows, `layout.STRIP` rows each."""
