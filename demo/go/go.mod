module example.org/parent

go 1.19
