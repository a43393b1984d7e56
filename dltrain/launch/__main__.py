from dltrain.launch.rank import main

main()
