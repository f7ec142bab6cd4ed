from hfpipe.cli import main

main()
