from hfpipe.cli.main import main

main()
