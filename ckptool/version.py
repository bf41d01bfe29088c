"""The version of ckptool, written into every file it makes."""

VERSION = "0.1.0"
