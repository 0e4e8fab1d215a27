"""stub until driver lands"""
