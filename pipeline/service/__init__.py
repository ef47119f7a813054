"""The service: galleries over HTTP for people with a browser and for programs, with a record of who asked and saw what."""
